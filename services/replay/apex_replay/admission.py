"""Whom a shard serves: one run, one configuration, one learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from apexrl.replay.engine import AcceptedLearner, RefusedError, ReplayEngine
from apexrl.transport.errors import RefusalKind, Refused
from apexrl.transport.handshake import Handshake, verify
from apexrl.transport.sample_events import LearnerIdentity
from apexrl.types import SignatureError, TableConfig


class Admission:
    """Checks handshakes against the experience that the engine holds.

    A shard starts without a run and without a configuration; it takes both from the first peer, because learner and
    actors may come in any order. The learner has the last word: experience that only actors vouched for gives way when
    it means something else to the learner; what an earlier learner vouched for does not, and the newcomer is refused.
    """

    def __init__(self, engine: ReplayEngine) -> None:
        self._engine = engine
        self._configuration: Handshake | None = None
        self._vouched = False

    def admit_actor(self, handshake: Handshake) -> None:
        """Raise Refused, with nothing changed, unless the actor's chunks belong here."""
        if not handshake.run_id:
            raise Refused(RefusalKind.MALFORMED, f"handshake.run_id of {handshake.peer} is empty, must name its run")
        if self._configuration is not None and self._engine.run_id in ("", handshake.run_id):
            verify(self._configuration, handshake, check_run=False)
        try:
            self._engine.adopt_run(handshake.run_id)
        except RefusedError as error:
            raise Refused(RefusalKind.RUN, f"handshake of {handshake.peer}: {error}") from None
        if self._configuration is None:
            self._configuration = _configured_by(handshake)

    def admit_learner(
        self, handshake: Handshake, identity: LearnerIdentity, tables: Sequence[TableConfig], discard_other_run: bool
    ) -> AcceptedLearner:
        """Serve this learner from now on; raises Refused, with nothing changed, if it may not be served."""
        self._refuse_older(identity)
        if not handshake.run_id:
            raise Refused(RefusalKind.MALFORMED, f"handshake.run_id of {handshake.peer} is empty, must name its run")
        same_run = self._engine.run_id in ("", handshake.run_id)
        unknown = same_run and self._must_give_way(handshake, tables)
        try:
            accepted = self._engine.accept_learner(
                identity.epoch, identity.instance, handshake.run_id, discard_other_run
            )
        except RefusedError as error:
            raise Refused(RefusalKind.RUN, f"handshake of {handshake.peer}: {error}") from None
        if unknown:
            self._engine.clear()
            self._engine.adopt_run(handshake.run_id)
            accepted = accepted._replace(cleared=True)
        self._configuration = _configured_by(handshake)
        self._vouched = True
        return accepted

    def check_learner(self, identity: LearnerIdentity) -> None:
        """Raise Refused unless this is the learner that is served."""
        engine = self._engine
        if identity == (engine.learner_epoch, engine.learner_instance):
            return
        if identity.epoch > engine.learner_epoch:
            # After a restart of the shard its learner's updates may come before its stream.
            raise Refused(RefusalKind.STARTING, f"learner.epoch {identity.epoch} has not opened a sample stream yet")
        self._refuse_older(identity)

    def state(self) -> tuple[Handshake | None, bool]:
        """What later peers are compared with, and whether a learner vouched for it."""
        return self._configuration, self._vouched

    def restore(self, configuration: Handshake, *, vouched: bool) -> None:
        """Go on with what :meth:`state` gave."""
        self._configuration = configuration
        self._vouched = vouched

    def matches(self, handshake: Handshake) -> bool:
        """Whether a peer that was admitted earlier would be admitted now."""
        ours = self._configuration
        return (
            ours is not None
            and self._engine.run_id == handshake.run_id
            and ours.config_digest == handshake.config_digest
        )

    def _refuse_older(self, identity: LearnerIdentity) -> None:
        engine = self._engine
        if len(identity.instance) != 16:
            raise Refused(RefusalKind.MALFORMED, f"learner.instance has {len(identity.instance)} bytes, must have 16")
        if identity.epoch < 1:
            raise Refused(RefusalKind.MALFORMED, f"learner.epoch is {identity.epoch}, must be at least 1")
        same = identity == (engine.learner_epoch, engine.learner_instance)
        if identity.epoch <= engine.learner_epoch and not same:
            raise Refused(
                RefusalKind.FENCED,
                f"learner.epoch is {identity.epoch}, must be above {engine.learner_epoch}, the epoch of the learner "
                "that this shard obeys",
            )

    def _must_give_way(self, learner: Handshake, tables: Sequence[TableConfig]) -> bool:
        """Whether tables that hold nothing, or that no learner has vouched for, mean something else to this one.

        Raises:
            Refused: they do, but hold experience that an earlier learner vouched for.
        """
        holds_data = any(table.inserted for table in self._engine.tables.values())
        try:
            if self._configuration is not None:
                verify(self._configuration, learner, check_run=False)
            for config in tables:
                if config.name in self._engine.tables:
                    self._engine.create_or_match(config)
        except Refused:
            if self._vouched and holds_data:
                raise
            return True
        except SignatureError as error:
            if self._vouched and holds_data:
                raise Refused(RefusalKind.TABLE, str(error)) from None
            return True
        return False


def _configured_by(handshake: Handshake) -> Handshake:
    """What later peers are compared with; in refusals the shard speaks of itself."""
    return dataclasses.replace(handshake, peer=f"this shard, configured by {handshake.peer},")
