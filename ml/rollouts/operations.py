"""The operations on rollouts: what operators, the pages and the monitor may do, and reports on where versions are.

Every change is one event, appended with compare-and-swap: `expected` is the id of the last event that the author saw.
If somebody else was faster, nothing is changed and the author is told.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ml.experiments.policies import ROLLOUT
from ml.experiments.rollout_state import Action, Catalogue, Kind, Position, RolloutEvent, RolloutState, fold
from ml.platform.clock import Clock
from ml.platform.errors import (
    FieldError,
    RolloutConflict,
    RolloutRefused,
    TipsError,
    UnknownRollout,
    UnprocessableRequest,
)
from ml.registry.cards import ModelCard
from ml.rollouts.evidence import Evidence, standing
from ml.rollouts.evidence_json import evidence_as_json
from ml.rollouts.evidence_reader import LATENCY_LIMIT, EvidenceReader
from ml.rollouts.gate_settings import GateSettings
from ml.rollouts.gates import GateResult, check_gates
from ml.rollouts.moves import Move, check_segment, check_words, next_move
from ml.rollouts.new_events import champion_of_environment, event_at, model_of_environment
from ml.rollouts.open_rollout import OpenRollout
from ml.rollouts.reports import ProposalReport, RolloutOverview, RolloutReport, detectable_harms
from ml.store.proposals import Proposal, Proposals
from ml.store.rollouts import NewRolloutEvent, RolloutLog
from ml.store.tips import TipStore

MODEL = "model"
"""The name of the language model in the evidence of the events that begin rollouts."""
PROPOSAL = "proposal"
"""The name of the evidence of a proposal in that of the event that begins its rollout."""


class Rollouts:
    """The operations on rollouts. All methods raise StorageUnavailable; those that change something RolloutConflict."""

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
        self.settings = settings
        self.log = RolloutLog(tip_store.database)
        self._proposals = Proposals(tip_store.database)
        self._reader = EvidenceReader(tip_store, settings, exposure_reported=exposure_reported)
        self.catalogue = catalogue
        self._cards = cards
        self._clock = clock
        self._notify = notify
        self._prompt_policy = prompt_policy
        self._prompt_versions = prompt_versions

    async def state(self) -> tuple[list[RolloutEvent], RolloutState]:
        """Return all events, and the state after them."""
        events = await self.log.events()
        return events, fold(events)

    async def report(self, rollout: int) -> RolloutReport:
        """Return the report on a rollout. Raises UnknownRollout."""
        events, state = await self.state()
        return await self._report(rollout, events, state)

    async def overview(self) -> RolloutOverview:
        """Return the report on all rollouts."""
        events, state = await self.state()
        tracks = {kind: state.track(kind) for kind in _KINDS}
        positions = [position for track in tracks.values() for position in track.positions.values()]
        champions = {kind: track.champion for kind, track in tracks.items() if track.champion}
        running = {each.rollout for each in (*positions, *champions.values())}
        last = {event.rollout: event for event in events if event.kind != "model"}
        return RolloutOverview(
            champions=champions,
            open=tuple([await self._report(position.rollout, events, state) for position in positions]),
            proposals=tuple(await self.proposals(events)),
            ended=tuple(event for rollout, event in sorted(last.items(), reverse=True) if rollout not in running),
            not_gated=tuple(self.not_gated(state).values()),
            model=last_model(events),
            model_since=state.model_since,
            event=state.event,
        )

    async def proposals(self, events: Sequence[RolloutEvent]) -> list[ProposalReport]:
        """Return the proposals of batch jobs whose rollouts have not begun, with the gates of their starts."""
        waiting = [proposal for proposal in await self._proposals.all() if not _has_begun(proposal, events)]
        if not waiting:
            return []
        cards = await self._known_cards()
        try:
            catalogue: Catalogue | None = await self.catalogue()
        except TipsError:
            catalogue = None  # the gate `listed` fails
        reports = []
        for proposal in waiting:
            # Only policies are proposed, and the digest of a policy is its version.
            evidence = standing(proposal.kind, proposal.version, proposal.version, catalogue, cards)
            reports.append(ProposalReport(proposal, tuple(check_gates(evidence, "shadow", self.settings))))
        return reports

    def not_gated(self, state: RolloutState) -> dict[Kind, str]:
        """Return, by kind, a sentence about what the environment decides, and not rollouts."""
        found: dict[Kind, str] = {}
        if self._prompt_policy != ROLLOUT:
            found["prompt"] = (
                f"Prompt versions are not gated: TIP_PROMPT_POLICY is {self._prompt_policy}, so TIP_PROMPT_VERSION "
                "decides; rollouts of prompt versions have no effect."
            )
        elif state.prompt.champion is None:
            found["prompt"] = "Prompt versions are not gated before the first rollout of one."
        if state.policy.champion is None:
            found["policy"] = "Ranking policies are not gated: SCORE_POLICY decides, until the first rollout of one."
        return found

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
        if kind not in _KINDS:
            raise UnprocessableRequest("Only prompt versions and policies have rollouts.", errors=[_KIND_ERROR])
        check_words(actor=actor, reason=reason)
        check_segment(segment)
        _, state = await self._expected_state(expected)
        catalogue = await self.catalogue()
        known = catalogue.prompts if kind == "prompt" else {each: each for each in catalogue.policies}
        if version not in known:
            error = FieldError("#/version", "is not known to serving", tuple(known))
            raise UnprocessableRequest(f"Serving does not know {version}; it knows {', '.join(known)}.", errors=[error])
        initial = self._initial(kind, catalogue) if state.track(kind).champion is None else None
        _refuse_in_use(version, segment, state, kind, initial)
        evidence = standing(kind, version, known[version], catalogue, await self._known_cards())
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
        subject = _open_rollout(rollout, *await self._expected_state(expected))
        move = next_move(subject.position, share)
        evidence = await self.evidence(subject)
        results = check_gates(evidence, move.step, self.settings)
        _refuse(results, force=force)
        document = evidence_as_json(evidence, results)
        if move.step == "canary" and evidence.kind == "prompt":
            document[LATENCY_LIMIT] = await self._reader.latency_limit(evidence.baseline, self._clock())
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
        subject = _open_rollout(rollout, *await self._expected_state(expected))
        if subject.position.paused:
            raise RolloutRefused(f"The rollout of {subject.position.version} is paused already.")
        event = self._event(subject.position, "pause", actor, reason)
        return await self._append(replace(event, paused=True, evidence=evidence or {}), expected=subject.state.event)

    async def resume(self, rollout: int, *, actor: str, reason: str, expected: int | None = None) -> RolloutEvent:
        """Resume a paused rollout. Raises as `promote` does."""
        check_words(actor=actor, reason=reason)
        subject = _open_rollout(rollout, *await self._expected_state(expected))
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
        subject = _open_rollout(rollout, *await self._expected_state(expected), with_champion=True)
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
        return await self.log.append(event, expected=expected, notify=self._notify)

    async def _expected_state(self, expected: int | None) -> tuple[list[RolloutEvent], RolloutState]:
        events, state = await self.state()
        if expected is not None and expected != state.event:
            raise RolloutConflict(
                "Somebody else has changed a rollout since; look at the state again before you decide."
            )
        return events, state

    async def _report(self, rollout: int, events: Sequence[RolloutEvent], state: RolloutState) -> RolloutReport:
        of_rollout = tuple(event for event in events if event.rollout == rollout and event.kind != "model")
        if not of_rollout:
            raise UnknownRollout(f"There is no rollout {rollout}.")
        last, position = of_rollout[-1], state.position(rollout)
        move: Move | None = None
        gates: tuple[GateResult, ...] = ()
        detectable: tuple[str, ...] = ()
        evidence = Evidence(last.kind, last.version)
        if position:
            evidence = await self.evidence(OpenRollout(position, state, events))
        if position and position.stage != "champion":
            move = next_move(position)
            gates = tuple(check_gates(evidence, move.step, self.settings))
            detectable = detectable_harms(evidence.baseline_reward, move.share)
        stage = position.stage if position else "registered"
        return RolloutReport(
            rollout=rollout,
            kind=last.kind,
            version=last.version,
            digest=last.digest,
            stage=stage,
            position=position,
            move=move,
            gates=gates,
            detectable=detectable,
            evidence=evidence,
            events=of_rollout,
            event=state.event,
        )

    async def evidence(self, subject: OpenRollout) -> Evidence:
        """Return the evidence about a rollout that has not ended."""
        try:
            catalogue: Catalogue | None = await self.catalogue()
        except TipsError:
            catalogue = None  # the gate `listed` fails
        return await self._reader.of(subject, catalogue, await self._known_cards(), self._clock())

    async def _known_cards(self) -> Sequence[ModelCard]:
        """Return the cards of serving; none if it does not answer, so that the gate `card` fails."""
        try:
            return await self._cards()
        except TipsError:
            return ()


_KINDS: tuple[Kind, ...] = ("prompt", "policy")
_KIND_ERROR = FieldError("#/kind", "is not one with rollouts", _KINDS)


def _has_begun(proposal: Proposal, events: Sequence[RolloutEvent]) -> bool:
    return any(
        (event.kind, event.version, event.action) == (proposal.kind, proposal.version, "start")
        and event.at >= proposal.at.timestamp()
        for event in events
    )


def last_model(events: Sequence[RolloutEvent]) -> str:
    """Return the language model that was recorded last: by a change, or when a rollout began; "" before."""
    for event in reversed(events):
        model: str = event.version if event.kind == "model" else event.evidence.get(MODEL, "")
        if model:
            return model
    return ""


def _open_rollout(
    rollout: int, events: Sequence[RolloutEvent], state: RolloutState, *, with_champion: bool = False
) -> OpenRollout:
    """Return a rollout that can be changed. Raises UnknownRollout and RolloutRefused."""
    last = [event for event in events if event.rollout == rollout and event.kind != "model"][-1:]
    if not last:
        raise UnknownRollout(f"There is no rollout {rollout}.")
    position = state.position(rollout)
    if position is None:
        raise RolloutRefused(f"The rollout of {last[0].version} has ended.")
    if position.stage == "champion" and not with_champion:
        raise RolloutRefused(f"{position.version} is the champion already.")
    return OpenRollout(position, state, events)


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
