"""Seeds for everything random in a run, from the run's one seed.

Every random source is named by (run seed, role, index, incarnation). Two names give independent streams
(``numpy.random.SeedSequence``); the same name gives the same stream on every machine. The index is an exploration index
or a process number, the incarnation the random id of a process start: a restarted actor must not live the same life
again.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

Role = Literal["actor", "evaluator", "learner", "networks", "policy", "environment", "assembler"]


def seed_sequence(run_seed: int, role: Role, index: int = 0, incarnation: bytes = b"") -> np.random.SeedSequence:
    """The sequence of one random source; ``spawn`` it for more sources of the same name."""
    name = hashlib.sha256(role.encode() + b"\0" + incarnation).digest()[:16]
    return np.random.SeedSequence([run_seed, index, *np.frombuffer(name, dtype="<u4").tolist()])


def generator(run_seed: int, role: Role, index: int = 0, incarnation: bytes = b"") -> np.random.Generator:
    """A NumPy generator for one random source."""
    return np.random.Generator(np.random.Philox(seed_sequence(run_seed, role, index, incarnation)))


def integer_seed(run_seed: int, role: Role, index: int = 0, incarnation: bytes = b"") -> int:
    """A seed in [0, 2^31) for what takes an integer: environments, ``torch.Generator.manual_seed``."""
    return int(seed_sequence(run_seed, role, index, incarnation).generate_state(1, np.uint32)[0] >> 1)
