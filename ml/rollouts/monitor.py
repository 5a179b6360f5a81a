"""The monitor of rollouts: it records evidence, rolls back, pauses and promotes, on one of all replicas.

A canary is rolled back when a guardrail fails, and paused by an alarm. With AUTO_RAMP, promotions and the starts of
proposed rollouts are made when all their gates pass. A champion is compared with nothing, so it is
never rolled back by the monitor.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import structlog
from prometheus_client import Counter

from ml.experiments.rollout_state import RolloutEvent, RolloutState
from ml.platform.background import BackgroundTasks
from ml.platform.clock import Clock
from ml.platform.errors import RolloutConflict, RolloutRefused, StorageUnavailable, TipsError
from ml.rollouts.aliases import SetAliases, aliases_by_model
from ml.rollouts.evidence_json import daily_figures, evidence_as_json
from ml.rollouts.gates import check_guardrails
from ml.rollouts.operations import Rollouts
from ml.rollouts.reports import ProposalReport, RolloutReport, last_model
from ml.store.database import Database
from ml.store.evidence import EvidenceLog
from ml.store.leases import Lease

log = structlog.get_logger()

MONITOR = "monitor"
"""The actor of the monitor's events, and the name of its lease and its task."""

LEASE = timedelta(minutes=3)
"""How long another replica waits for a monitor that has stopped."""

_MAX_REASON = 1_000


class Monitor:
    """Checks all open rollouts, if this replica holds the lease."""

    def __init__(
        self,
        rollouts: Rollouts,
        database: Database,
        *,
        holder: str,
        clock: Clock,
        transitions: Counter,
        auto_ramp: bool = False,
        set_aliases: SetAliases | None = None,
    ) -> None:
        """`holder`: the id of this replica. `transitions`: counts events by kind and action.

        `auto_ramp`: start and promote versions whose gates all pass. `set_aliases`: of MLflow's registry; None without
        one.
        """
        self._rollouts = rollouts
        self._evidence = EvidenceLog(database)
        self._lease = Lease(database, MONITOR, holder, LEASE)
        self._clock = clock
        self._transitions = transitions
        self._auto_ramp = auto_ramp
        self._set_aliases = set_aliases
        self._is_leader = False
        self._announced: int | None = None
        self._recorded: dict[int, Any] = {}
        self._last_model = ""
        self._mirrored: Any = None
        self._failure = ""

    async def check(self) -> list[RolloutEvent]:
        """Check all open rollouts once; return the events since the last check, if this replica holds the lease.

        Raises StorageUnavailable.
        """
        events, state = await self._rollouts.reports.state()
        proposals = await self._rollouts.reports.proposals(events) if self._auto_ramp else []
        self._is_leader = bool(events or proposals) and await self._lease.acquire(self._clock())
        if not self._is_leader:
            self._announced = state.event
            return []
        with suppress(RolloutConflict):  # the next check sees the new state
            await self._record_model(events)
            for position in [*state.prompt.positions.values(), *state.policy.positions.values()]:
                await self._check_rollout(await self._rollouts.reports.report(position.rollout))
            for report in proposals:
                await self._start(report)
        events, state = await self._rollouts.reports.state()
        await self._mirror_aliases(state)
        return self._announce(events)

    async def run(self, every: float) -> None:
        """Check every `every` seconds. A failure is logged once, and the next check tries again."""
        while True:
            try:
                await self.check()
                failure = ""
            except TipsError as error:
                failure = error.slug
            if failure and failure != self._failure:
                log.warning("rollouts_not_checked", outcome=failure, reason="the next check tries again")
            self._failure = failure
            await asyncio.sleep(every)

    async def release(self) -> None:
        """Give up the lease, if this replica holds it, so that another one takes over at once."""
        if self._is_leader:
            with suppress(StorageUnavailable):
                await self._lease.release()

    async def _record_model(self, events: Sequence[RolloutEvent]) -> None:
        """Record another language model, once two checks have seen it: replicas of serving restart one by one."""
        recorded = last_model(events)
        if not recorded:  # there has been no rollout
            return
        try:
            model = (await self._rollouts.catalogue()).model
        except TipsError:
            return
        if model not in {"", recorded} and model == self._last_model:
            await self._rollouts.record_model(model, expected=events[-1].id)
        self._last_model = model

    async def _check_rollout(self, report: RolloutReport) -> None:
        if report.position is None:
            return
        await self._record_evidence(report)
        if report.position.stage == "canary" and await self._guard(report):
            return
        if self._auto_ramp and report.move and all(gate.passed for gate in report.gates):
            with suppress(RolloutRefused):  # the gates passed a moment ago
                await self._rollouts.promote(
                    report.rollout,
                    actor=MONITOR,
                    reason=f"AUTO_RAMP: all gates of the step {report.move.step} pass.",
                    expected=report.event,
                )

    async def _start(self, report: ProposalReport) -> None:
        """Start a proposed rollout, if all its gates pass and its kind has no other one."""
        if report.can_start:
            with suppress(RolloutRefused):  # another rollout has to end first
                await self._rollouts.start(
                    report.proposal.kind,
                    report.proposal.version,
                    actor=MONITOR,
                    reason="AUTO_RAMP: a batch job proposed it, and all gates of its start pass.",
                )

    async def _record_evidence(self, report: RolloutReport) -> None:
        figures = daily_figures(report.evidence)
        if figures != self._recorded.get(report.rollout):
            await self._evidence.record(report.rollout, self._clock(), figures)
            self._recorded[report.rollout] = figures

    async def _guard(self, report: RolloutReport) -> bool:
        """Roll a canary back, or pause it; return whether that was necessary."""
        rollout, evidence = report.rollout, report.evidence
        results = check_guardrails(evidence, self._rollouts.settings)
        failed = [result for result in results if not result.passed]
        document = evidence_as_json(evidence, results)
        if failed:
            reason = " ".join(result.sentence for result in failed)[:_MAX_REASON]
            await self._rollouts.rollback(
                rollout, actor=MONITOR, reason=reason, evidence=document, expected=report.event
            )
            return True
        if evidence.paused or not {*evidence.alarms} - _alarms_before(report):
            return False
        reason = f"Alarm: {'; '.join(evidence.alarms)}."[:_MAX_REASON]
        await self._rollouts.pause(rollout, actor=MONITOR, reason=reason, evidence=document, expected=report.event)
        return True

    def _announce(self, events: Sequence[RolloutEvent]) -> list[RolloutEvent]:
        """Log and count the events since the last check, whoever caused them; after a start, only the monitor's own."""
        announced = len(events) if self._announced is None else self._announced
        new = [event for event in events if event.id > announced]
        self._announced = len(events)
        for event in new:
            self._transitions.labels(event.kind, event.action).inc()
            log.info(
                "rollout_event",
                id=event.id,
                rollout=event.rollout,
                kind=event.kind,
                version=event.version,
                action=event.action,
                from_stage=event.from_stage,
                to_stage=event.to_stage,
                share=event.share,
                segment=event.segment,
                gated=event.gated,
                failed=event.evidence.get("failed", []),
                actor=event.actor,
            )
        return new

    async def _mirror_aliases(self, state: RolloutState) -> None:
        """Set the aliases in MLflow's registry, once per change; a failure is logged, and changes nothing here."""
        if self._set_aliases is None or state.policy.champion is None:
            return
        try:
            wanted = aliases_by_model(state.policy, await self._rollouts.catalogue())
        except TipsError:
            return
        if wanted == self._mirrored:
            return
        self._mirrored = wanted
        for name, aliases in wanted.items():
            failure = await asyncio.to_thread(self._set_aliases, name, aliases)
            if failure:
                log.warning("aliases_not_set", model=name, reason=failure)


@asynccontextmanager
async def keep_monitoring(monitor: Monitor, background: BackgroundTasks, *, every: float) -> AsyncIterator[None]:
    """Check rollouts every `every` seconds until the block ends."""
    try:
        async with background.run("rollout_monitor", monitor.run(every)):
            yield
    finally:
        await monitor.release()


def _alarms_before(report: RolloutReport) -> set[str]:
    """Return the alarms that have paused this canary before: who resumed it has seen them."""
    stage_event = report.position.stage_event if report.position else 0
    pauses = [event for event in report.events if event.action == "pause" and event.id > stage_event]
    return {alarm for event in pauses for alarm in event.evidence.get("alarms", ())}
