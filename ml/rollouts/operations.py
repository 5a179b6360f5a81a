"""The operations on rollouts: what operators, the pages and the monitor may do.

Every change is one event, appended with compare-and-swap: `expected` is the id of the last event that the author saw.
If somebody else was faster, nothing is changed and the author is told.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ml.experiments.policies import ROLLOUT
from ml.experiments.rollout_state import Action, Catalogue, Kind, Position, RolloutEvent, RolloutState
from ml.features.segments import check_segment
from ml.platform.clock import Clock
from ml.platform.errors import FieldError, RolloutConflict, RolloutRefused, UnprocessableRequest
from ml.registry.cards import ModelCard
from ml.rollouts.evidence import standing
from ml.rollouts.evidence_json import evidence_as_json
from ml.rollouts.evidence_reader import LATENCY_LIMIT
from ml.rollouts.gate_settings import GateSettings
from ml.rollouts.gates import GateResult, check_gates
from ml.rollouts.moves import check_words, next_move
from ml.rollouts.new_events import champion_of_environment, event_at, model_of_environment
from ml.rollouts.open_rollout import open_rollout
from ml.rollouts.reports import KINDS, MODEL, RolloutReporter
from ml.store.proposals import Proposals
from ml.store.rollouts import NewRolloutEvent, RolloutLog
from ml.store.tips import TipStore

PROPOSAL = "proposal"
"""The name of the evidence of a proposal in that of the event that begins its rollout."""


class Rollouts:
    """The operations on rollouts, and the reports on them. All methods raise StorageUnavailable and RolloutConflict."""

    def __init__(
        self,
        tip_store: TipStore,
        *,
        catalogue: Callable[[], Awaitable[Catalogue]],
        cards: Callable[[], Awaitable[Sequence[ModelCard]]],
        clock: Clock,
        exposure_reported: bool,
        settings: GateSettings = GateSettings(),  # noqa: B008 - it is immutable
        notify: bool = False,
        prompt_policy: str = ROLLOUT,
        prompt_versions: Sequence[str] = (),
    ) -> None:
        """`catalogue`, `cards`: ask serving; they raise TipsError if it does not answer. `notify`: there is a webhook.

        `exposure_reported`: only tips that were seen count for rewards. `prompt_policy`, `prompt_versions`: of
        TIP_PROMPT_POLICY and TIP_PROMPT_VERSION.
        """
        self.reports = RolloutReporter(
            tip_store,
            catalogue=catalogue,
            cards=cards,
            clock=clock,
            exposure_reported=exposure_reported,
            settings=settings,
            prompt_policy=prompt_policy,
        )
        self.settings = settings
        self.catalogue = catalogue
        self._log = RolloutLog(tip_store.database)
        self._proposals = Proposals(tip_store.database)
        self._clock = clock
        self._notify = notify
        self._prompt_versions = prompt_versions

    async def start(
        self,
        kind: Kind,
        version: str,
        *,
        actor: str,
        reason: str,
        segment: str = "",
        expected: int | None = None,
        force: bool = False,
    ) -> RolloutEvent:
        """Start a rollout: the version goes into shadow. The first champion is recorded before, if there is none.

        `segment`: the canary will get only the tips of users in it. `force`: although gates fail, which is recorded.
        Raises UnprocessableRequest for a version that serving does not have, RolloutRefused if a gate fails or the
        version is in use already, and the errors of the catalogue.
        """
        if kind not in KINDS:
            raise UnprocessableRequest("Only prompt versions and policies have rollouts.", errors=[_KIND_ERROR])
        check_words(actor=actor, reason=reason)
        if segment:
            check_segment(segment)
        _, state = await self._expected_state(expected)
        catalogue = await self.catalogue()
        known = catalogue.prompts if kind == "prompt" else {each: each for each in catalogue.policies}
        if version not in known:
            error = FieldError("#/version", "is not known to serving", tuple(known))
            raise UnprocessableRequest(f"Serving does not know {version}; it knows {', '.join(known)}.", errors=[error])
        initial = self._initial(kind, catalogue) if state.track(kind).champion is None else None
        _refuse_in_use(version, segment, state, kind, initial)
        evidence = standing(kind, version, known[version], catalogue, await self.reports.known_cards())
        results = check_gates(evidence, "shadow", self.settings)
        _refuse(results, force=force)
        proposal = await self._proposals.find(kind, version)
        proposed = {PROPOSAL: dict(proposal.evidence)} if proposal else {}
        last = state.event
        if initial:
            last = (await self._append(initial, expected=last)).id
        event = NewRolloutEvent(
            at=self._clock(),
            kind=kind,
            version=version,
            digest=known[version],
            action="start",
            from_stage="registered",
            to_stage="shadow",
            actor=actor,
            reason=reason,
            segment=segment,
            gated=_all_pass(results),
            evidence=evidence_as_json(evidence, results) | {MODEL: catalogue.model} | proposed,
        )
        return await self._append(event, expected=last)

    async def promote(
        self,
        rollout: int,
        *,
        actor: str,
        reason: str,
        share: float | None = None,
        force: bool = False,
        expected: int | None = None,
    ) -> RolloutEvent:
        """Promote a rollout: from shadow to canary, to a larger share, or to champion (the share 1).

        `share`: the default is the next one of `RAMP`. `force`: although gates fail, which is recorded. Raises
        UnknownRollout, UnprocessableRequest for a share that is not possible, and RolloutRefused, naming each gate that
        fails with its figure and its bound.
        """
        check_words(actor=actor, reason=reason)
        subject = open_rollout(rollout, *await self._expected_state(expected))
        move = next_move(subject.position, share)
        evidence = await self.reports.evidence(subject)
        results = check_gates(evidence, move.step, self.settings)
        _refuse(results, force=force)
        document = evidence_as_json(evidence, results)
        if move.step == "canary" and evidence.kind == "prompt":
            document[LATENCY_LIMIT] = await self.reports.reader.latency_limit(evidence.baseline, self._clock())
        action: Action = "ramp" if move.step == "ramp" else "promote"
        event = self._event(subject.position, action, actor, reason)
        moved = replace(event, to_stage=move.stage, share=move.share, segment=move.segment, paused=False)
        gated = replace(moved, gated=_all_pass(results), evidence=document)
        return await self._append(gated, expected=subject.state.event)

    async def pause(
        self,
        rollout: int,
        *,
        actor: str,
        reason: str,
        expected: int | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> RolloutEvent:
        """Pause a rollout: nothing promotes it until it is resumed; its share stays. Raises as `promote` does."""
        check_words(actor=actor, reason=reason)
        subject = open_rollout(rollout, *await self._expected_state(expected))
        if subject.position.paused:
            raise RolloutRefused(f"The rollout of {subject.position.version} is paused already.")
        event = self._event(subject.position, "pause", actor, reason)
        return await self._append(replace(event, paused=True, evidence=evidence or {}), expected=subject.state.event)

    async def resume(self, rollout: int, *, actor: str, reason: str, expected: int | None = None) -> RolloutEvent:
        """Resume a paused rollout. Raises as `promote` does."""
        check_words(actor=actor, reason=reason)
        subject = open_rollout(rollout, *await self._expected_state(expected))
        if not subject.position.paused:
            raise RolloutRefused(f"The rollout of {subject.position.version} is not paused.")
        event = self._event(subject.position, "resume", actor, reason)
        return await self._append(replace(event, paused=False), expected=subject.state.event)

    async def rollback(
        self,
        rollout: int,
        *,
        actor: str,
        reason: str,
        expected: int | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> RolloutEvent:
        """Take a version out of use; the previous champion replaces a champion.

        Raises UnknownRollout, and RolloutRefused for a rollout that has ended or a champion without a previous one.
        """
        check_words(actor=actor, reason=reason)
        subject = open_rollout(rollout, *await self._expected_state(expected), with_champion=True)
        position = subject.position
        if position.stage == "champion" and not subject.state.track(position.kind).previous:
            raise RolloutRefused(f"{position.version} is the first champion: there is no earlier one to go back to.")
        event = self._event(position, "rollback", actor, reason)
        ended = replace(event, to_stage="registered", share=0.0, paused=False, evidence=evidence or {})
        return await self._append(ended, expected=subject.state.event)

    async def record_model(self, model: str, *, expected: int) -> RolloutEvent:
        """Record that the environment has changed the language model: a new evidence window begins."""
        return await self._append(model_of_environment(model, at=self._clock()), expected=expected)

    def _event(self, position: Position, action: Action, actor: str, reason: str) -> NewRolloutEvent:
        return event_at(position, action, actor=actor, reason=reason, at=self._clock())

    def _initial(self, kind: Kind, catalogue: Catalogue) -> NewRolloutEvent:
        """Return the event that records the champion of the environment."""
        if kind == "policy":
            version, setting = catalogue.default_policy, "SCORE_POLICY"
        elif len(self._prompt_versions) == 1:
            version, setting = self._prompt_versions[0], "TIP_PROMPT_VERSION"
        else:
            version, setting = catalogue.default_prompt_version, "DEFAULT_PROMPT_VERSION"
        digest = catalogue.prompts.get(version) if kind == "prompt" else version
        if digest is None:
            raise RolloutRefused(f"{setting} is {version}, which serving does not know, so there is no first champion.")
        reason = f"The first champion is that of {setting}."
        return champion_of_environment(kind, version, digest, reason=reason, at=self._clock())

    async def _append(self, event: NewRolloutEvent, *, expected: int) -> RolloutEvent:
        return await self._log.append(event, expected=expected, notify=self._notify)

    async def _expected_state(self, expected: int | None) -> tuple[list[RolloutEvent], RolloutState]:
        events, state = await self.reports.state()
        if expected is not None and expected != state.event:
            raise RolloutConflict(
                "Somebody else has changed a rollout since; look at the state again before you decide."
            )
        return events, state


_KIND_ERROR = FieldError("#/kind", "is not one with rollouts", KINDS)


def _refuse_in_use(
    version: str, segment: str, state: RolloutState, kind: Kind, initial: NewRolloutEvent | None
) -> None:
    track = state.track(kind)
    champion = track.champion.version if track.champion else initial.version if initial else ""
    if version == champion:
        raise RolloutRefused(f"{version} is the champion already.")
    for position in track.positions.values():
        if position.version == version or position.segment == segment:
            raise RolloutRefused(
                f"The rollout {position.rollout} of {position.version} is in {position.stage}; there is one at a time "
                "of each kind and segment. Roll it back first."
            )


def _refuse(results: Sequence[GateResult], *, force: bool) -> None:
    """Raise RolloutRefused, naming each gate that fails, unless it is forced."""
    failed = [result for result in results if not result.passed]
    if failed and not force:
        errors = [FieldError(f"#/gates/{result.name}", f"{result.figure}; {result.bound}") for result in failed]
        raise RolloutRefused(" ".join(result.sentence for result in failed), errors=errors)


def _all_pass(results: Sequence[GateResult]) -> bool:
    return all(result.passed for result in results)
