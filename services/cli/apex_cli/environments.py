"""``apex envs check``: does an environment keep what actors rely on?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from apexrl.config import EnvConfig
from apexrl.envs import make_vec
from apexrl.envs.checks import check_env


@dataclass(frozen=True)
class CheckArguments:
    """Check a vector environment: types, shapes, seeding, autoreset, final observations."""

    env: Annotated[str, tyro.conf.Positional]
    """SUITE/NAME or PACKAGE.MODULE:FUNCTION, as in env.id."""
    lanes: int = 3
    """Environments to step together."""
    steps: int = 1100
    """Steps of each pass. Episodes must end within them: many tasks have 1000 steps."""


def check(arguments: CheckArguments) -> int:
    """``apex envs check``; 1 if something is wrong."""
    config = EnvConfig(id=arguments.env)
    problems = check_env(lambda lanes: make_vec(config, lanes), num_lanes=arguments.lanes, num_steps=arguments.steps)
    for problem in problems:
        print(f"wrong: {problem}")
    print(f"{arguments.env}: {len(problems)} problems" if problems else f"{arguments.env}: all checks passed")
    return 1 if problems else 0
