"""Reports on rollouts: where each one is, what it needs for its next step, and how soon a harm would be found."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ml.experiments.guardrails import tips_to_detect
from ml.experiments.policies import ROLLOUT
from ml.experiments.rollout_state import Catalogue, Kind, Position, RolloutEvent, RolloutState, Stage, fold
from ml.platform.clock import Clock
from ml.platform.errors import TipsError, UnknownRollout
from ml.registry.cards import ModelCard
from ml.rollouts.evidence import Evidence, standing
from ml.rollouts.evidence_reader import EvidenceReader
from ml.rollouts.gate_settings import GateSettings
from ml.rollouts.gates import GateResult, Step, check_gates
from ml.rollouts.moves import Move, next_move
from ml.rollouts.open_rollout import OpenRollout
from ml.store.proposals import Proposal, Proposals
from ml.store.rollouts import RolloutLog
from ml.store.tips import TipStore

KINDS: tuple[Kind, ...] = ("prompt", "policy")
"""The kinds of versions that have rollouts."""

MODEL = "model"
"""The name of the language model in the evidence of the events that begin rollouts."""

HARMS = (0.02, 0.05, 0.08)
"""The drops of the mean reward for which reports say how many tips it takes to find them."""


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """Where a rollout is, and what it needs for its next step.

    `position`: None once it has ended, because the version was rolled back or replaced. `move`: the next step; None for
    a champion and a rollout that has ended. `gates`: of that step. `detectable`: sentences on how many tips it takes to
    find a harm at the next share. `events`: of this rollout, the oldest first. `event`: the id of the last one of
    all rollouts, to be passed as `expected`.
    """

    rollout: int
    kind: Kind
    version: str
    digest: str
    stage: Stage
    position: Position | None
    move: Move | None
    gates: tuple[GateResult, ...]
    detectable: tuple[str, ...]
    evidence: Evidence
    events: tuple[RolloutEvent, ...]
    event: int

    @property
    def next_step(self) -> Step | None:
        """The step that a promotion leads to."""
        return self.move.step if self.move else None


@dataclass(frozen=True, slots=True)
class ProposalReport:
    """A proposal whose rollout has not begun, and the gates of its start."""

    proposal: Proposal
    gates: tuple[GateResult, ...]

    @property
    def version(self) -> str:
        return self.proposal.version

    @property
    def can_start(self) -> bool:
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True, slots=True)
class RolloutOverview:
    """All rollouts.

    `champions`: by kind. `open`: those in shadow and the canaries. `proposals`: of batch jobs. `ended`: the last event
    of each other rollout, the newest first. `not_gated`: sentences about what rollouts do not decide. `model`: of
    serving, as last recorded; "" before. `event`: the id of the last event, to be passed as `expected`.
    """

    champions: Mapping[Kind, Position]
    open: tuple[RolloutReport, ...]
    proposals: tuple[ProposalReport, ...]
    ended: tuple[RolloutEvent, ...]
    not_gated: tuple[str, ...]
    model: str
    model_since: float
    event: int


class RolloutReporter:
    """Reports on rollouts. All methods raise StorageUnavailable."""

    def __init__(
        self,
        tip_store: TipStore,
        *,
        catalogue: Callable[[], Awaitable[Catalogue]],
        cards: Callable[[], Awaitable[Sequence[ModelCard]]],
        clock: Clock,
        exposure_reported: bool,
        settings: GateSettings,
        prompt_policy: str,
    ) -> None:
        """`catalogue`, `cards`: ask serving; they raise TipsError if it does not answer.

        `exposure_reported`: only tips that were seen count for rewards. `prompt_policy`: of TIP_PROMPT_POLICY.
        """
        self.reader = EvidenceReader(tip_store, settings, exposure_reported=exposure_reported)
        self._log = RolloutLog(tip_store.database)
        self._proposals = Proposals(tip_store.database)
        self._catalogue = catalogue
        self._cards = cards
        self._clock = clock
        self._settings = settings
        self._prompt_policy = prompt_policy

    async def state(self) -> tuple[list[RolloutEvent], RolloutState]:
        """Return all events, and the state after them."""
        events = await self._log.events()
        return events, fold(events)

    async def report(self, rollout: int) -> RolloutReport:
        """Return the report on a rollout. Raises UnknownRollout."""
        events, state = await self.state()
        return await self._report(rollout, events, state)

    async def overview(self) -> RolloutOverview:
        """Return the report on all rollouts."""
        events, state = await self.state()
        tracks = {kind: state.track(kind) for kind in KINDS}
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
        cards, catalogue = await self.known_cards(), await self._known_catalogue()
        reports = []
        for proposal in waiting:
            # Only policies are proposed, and the digest of a policy is its version.
            evidence = standing(proposal.kind, proposal.version, proposal.version, catalogue, cards)
            reports.append(ProposalReport(proposal, tuple(check_gates(evidence, "shadow", self._settings))))
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

    async def evidence(self, subject: OpenRollout) -> Evidence:
        """Return the evidence about a rollout that has not ended."""
        return await self.reader.of(subject, await self._known_catalogue(), await self.known_cards(), self._clock())

    async def _known_catalogue(self) -> Catalogue | None:
        """Return the catalogue of serving; None if it does not answer, so that the gate `listed` fails."""
        try:
            return await self._catalogue()
        except TipsError:
            return None

    async def known_cards(self) -> Sequence[ModelCard]:
        """Return the cards of serving; none if it does not answer, so that the gate `card` fails."""
        try:
            return await self._cards()
        except TipsError:
            return ()

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
            gates = tuple(check_gates(evidence, move.step, self._settings))
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


def detectable_harms(baseline: float | None, share: float) -> tuple[str, ...]:
    """Return sentences on how many tips it takes to find a harm of each size of `HARMS` at a share.

    `baseline`: the mean reward of the champion; None if it is not known.
    """
    if share >= 1:
        return ("A champion is compared with nothing: a later harm is not found by itself.",)
    if baseline is None:
        return ("The champion has no mature tips here yet, so it is not known how many tips it takes to find a harm.",)
    sentences = []
    for harm in HARMS:
        harmed = baseline - harm
        if harmed < 0:
            continue
        needed = _tips_to_detect(round(baseline, 3), round(harmed, 3), share)
        tips = "more than a million tips" if needed is None else f"about {_rounded(needed):,} tips"
        sentences.append(
            f"At a share of {share:.0%}, a drop of the mean reward from {baseline:.1%} to {harmed:.1%} is found after "
            f"{tips} with a probability of 90 %."
        )
    return tuple(sentences)


# It takes 40 ms, and the mean reward changes slowly.
@lru_cache(maxsize=1024)
def _tips_to_detect(baseline: float, harmed: float, share: float) -> int | None:
    return tips_to_detect(baseline, harmed, share)


def _rounded(number: int) -> int:
    """Round to two significant digits, which avoids false precision."""
    return round(number, -max(0, len(str(number)) - 2))
