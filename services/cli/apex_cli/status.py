"""``apex status``: how a run stands, asked of its services."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from apex_cli.view import aligned, shard_heading, shard_rows, status_rows
from apexrl.config import ConfigError, LearnerConfig, ReplayConfig, SecurityConfig, load_sections
from apexrl.config.fields import require_address
from apexrl.runtime.lifecycle import Shutdown
from apexrl.transport import coordinator_pb2, security
from apexrl.transport.info_client import State, UnreachableError, fetch_states
from apexrl.transport.sample_client import NO_LIMIT
from apexrl.transport.security import Security

#: Puts the cursor into the upper left corner of a terminal and clears what is below.
_CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True)
class StatusArguments:
    """Print how a run stands, as its learner and its replay shards say.

    Exits with 1 if one of them could not be reached. In a cluster, forward their ports first: kubectl port-forward.
    """

    addresses: Annotated[tuple[str, ...], tyro.conf.Positional] = (LearnerConfig().address, *ReplayConfig().addresses)
    """HOST:PORT of each service, learners and shards in any order. Without any those of --config; without that too,
    one learner and one shard on this machine."""
    config: Path | None = None
    """YAML file of the experiment: where its services are, and its section `security`."""
    json: bool = False
    """Print JSON instead: one object, or one a line with --watch."""
    watch: float = 0.0
    """Ask again after so many seconds, until Ctrl-C; 0 = ask once."""
    timeout_seconds: float = 5.0
    """Longest wait for an answer."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """As in the configuration of the services."""


@dataclass(frozen=True)
class _ConfigArgument:
    config: Path | None = None


def parse_arguments(arguments: Sequence[str]) -> StatusArguments:
    """The command line, over what ``--config`` names.

    Raises:
        ConfigError: the file, or what is given, cannot work.
    """
    defaults = StatusArguments()
    asks_for_help = {"-h", "--help"} & set(arguments)
    # The file first: the options of its section `security` complete it, and may be wrong without it.
    path = (
        None if asks_for_help else tyro.cli(_ConfigArgument, args=list(arguments), return_unknown_args=True)[0].config
    )
    if path is not None:
        learner, replay, identity = load_sections(path, ["learner", "replay", "security"], prog="apex status")
        defaults = StatusArguments((learner.address, *replay.addresses), path, security=identity)
    chosen = tyro.cli(StatusArguments, args=list(arguments), default=defaults, prog="apex status")
    for address in chosen.addresses:
        require_address("ADDRESS", address)
    for name, value, least in (("watch", chosen.watch, 0.0), ("timeout-seconds", chosen.timeout_seconds, 1e-3)):
        if not least <= value < math.inf:
            raise ConfigError(f"--{name} is {value:g}, must be {least:g} or above")
    return chosen


def status(arguments: StatusArguments, shutdown: Shutdown) -> int:
    """``apex status``; returns the exit code."""
    security.use(Security.load(arguments.security))
    while True:
        states = fetch_states(arguments.addresses, timeout_seconds=arguments.timeout_seconds)
        answers = list(zip(arguments.addresses, states, strict=True))
        if arguments.json:
            print(json.dumps(as_json(answers), indent=None if arguments.watch else 2), flush=True)
        else:
            _print_lines(lines(answers), again=arguments.watch > 0)
        if not arguments.watch or shutdown.wait(arguments.watch):
            return int(any(isinstance(state, UnreachableError) for state in states))


def _print_lines(text: Iterable[str], *, again: bool) -> None:
    if again:
        print(_CLEAR if sys.stdout.isatty() else "", end="")
        text = [time.strftime("%H:%M:%S"), *text]
    print("\n".join(text), flush=True)


def phase(state: coordinator_pb2.GetStatusResponse) -> str:
    """What the learner does, in a word or two."""
    if state.finished:
        return "finished"
    if not state.version.epoch:
        return "starting"
    if state.replay_items < state.min_replay_items:
        return "filling replay"
    return "waiting" if state.waiting else "learning"


def lines(answers: Iterable[tuple[str, State | UnreachableError]]) -> list[str]:
    """What every service said, for people."""
    text: list[str] = []
    for address, state in answers:
        if isinstance(state, UnreachableError):
            text += [f"unreachable: {state}", ""]
            continue
        if isinstance(state, coordinator_pb2.GetStatusResponse):
            text.append(f"learner {address}, {phase(state)}, run {state.run_id}, epoch {state.epoch}")
            rows = status_rows(state)
        else:
            text.append(f"replay shard {address}, {shard_heading(state)}")
            rows = shard_rows(state)
        text += [*aligned(rows), *(f"  waits: {line}" for line in state.waiting), ""]
    return text[:-1]


def as_json(answers: Iterable[tuple[str, State | UnreachableError]]) -> dict[str, Any]:
    """What every service said, for programs. Fields have the names of the protocol; what is not known is null."""
    services: list[dict[str, Any]] = []
    for address, state in answers:
        if isinstance(state, UnreachableError):
            services.append({"address": address, "kind": None, "error": str(state)})
        elif isinstance(state, coordinator_pb2.GetStatusResponse):
            services.append({"address": address, "kind": "learner", "phase": phase(state), **_plain(state)})
        else:
            services.append({"address": address, "kind": "replay", **_plain(state)})
    return {"services": services}


def _plain(message: Message) -> dict[str, Any]:
    """A message as JSON has it, but for `bytes`: numbers stay numbers, and no limit or no number is null."""
    found: dict[str, Any] = {}
    for described in message.DESCRIPTOR.fields:
        if described.type == FieldDescriptor.TYPE_BYTES:
            continue
        value = getattr(message, described.name)
        if described.is_repeated:
            found[described.name] = [_plain_value(one) for one in value]
        elif described.has_presence and not message.HasField(described.name):
            found[described.name] = None
        else:
            found[described.name] = _plain_value(value)
    return found


def _plain_value(value: Any) -> Any:
    if isinstance(value, Message):
        return _plain(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if value == NO_LIMIT else value
