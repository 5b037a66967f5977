"""Peers that do not fit together are told why."""

from __future__ import annotations

import json

import pytest

from apexrl.transport.errors import RefusalKind, Refused
from apexrl.transport.handshake import MAX_REFUSAL_CHARACTERS, Handshake, verify

RUN = "0123456789abcdef" * 2


def config(**fields: object) -> str:
    return json.dumps({"env.stack": 4, "env.id": "atari/pong", **fields}, sort_keys=True, separators=(",", ":"))


def test_a_handshake_survives_the_wire() -> None:
    ours = Handshake(RUN, config(), "actor-7")
    theirs = Handshake.from_proto(ours.to_proto())
    assert theirs == ours
    verify(ours, theirs)


def test_a_difference_is_readable() -> None:
    with pytest.raises(Refused) as error:
        verify(Handshake(RUN, config(), "shard"), Handshake(RUN, config(**{"env.stack": 1}), "actor-7"))
    assert error.value.kind is RefusalKind.CONFIGURATION
    assert "env.stack: 4 here, 1 there" in str(error.value)
    assert "actor-7" in str(error.value)
    assert "env.id" not in str(error.value)


def test_another_run_is_refused_unless_any_run_will_do() -> None:
    ours, theirs = Handshake(RUN, config(), "learner"), Handshake("f" * 32, config(), "actor-7")
    with pytest.raises(Refused, match=r"actor-7 names run f+, this is run 0123") as error:
        verify(ours, theirs)
    assert error.value.kind is RefusalKind.RUN
    verify(ours, theirs, check_run=False)


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("protocol_version", 0, RefusalKind.PROTOCOL),
        ("protocol_version", 2, RefusalKind.PROTOCOL),
        ("run_id", "../etc/passwd", RefusalKind.MALFORMED),
        ("config_digest", "0" * 64, RefusalKind.MALFORMED),
        ("shared_config_json", "x" * 70_000, RefusalKind.MALFORMED),
        ("peer", "x" * 300, RefusalKind.MALFORMED),
    ],
)
def test_a_handshake_that_cannot_be_is_refused_and_named(field: str, value: object, kind: RefusalKind) -> None:
    message = Handshake(RUN, config()).to_proto()
    setattr(message, field, value)
    with pytest.raises(Refused, match=f"handshake.{field}") as error:
        Handshake.from_proto(message)
    assert error.value.kind is kind


def test_a_huge_difference_fits_into_a_status() -> None:
    many = {f"network.layer_{i}": "x" * 100 for i in range(200)}
    with pytest.raises(Refused) as error:
        verify(Handshake(RUN, config()), Handshake(RUN, config(**many)))
    assert len(str(error.value)) <= MAX_REFUSAL_CHARACTERS
