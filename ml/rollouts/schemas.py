"""Response schemas of `GET /rollouts` and `GET /rollouts/{id}`, and of the events that the webhook delivers."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from ml.experiments.guardrails import Status
from ml.experiments.rollout_state import Action, Kind, RolloutEvent, Stage
from ml.rollouts.gates import Step
from ml.rollouts.reports import ProposalReport, RolloutOverview, RolloutReport
from ml.store.rollouts import time_of


class RolloutEventResponse(BaseModel):
    """One event of the history of rollouts."""

    model_config = ConfigDict(from_attributes=True)

    id: int = Field(description="1, 2, 3, … over all kinds.")
    at: datetime
    rollout: int = Field(description="The id of the event with which this rollout began.")
    kind: Kind
    version: str = Field(description="Of a prompt, of a ranking policy, or the id of a model.")
    digest: str = Field(description="Of a prompt version; of a policy, its version; of a model, empty.")
    action: Action
    from_stage: Stage
    to_stage: Stage
    share: float = Field(description="Of the tips in `segment`, from 0 to 1.")
    segment: str = Field(description="The segment of users that the version is for; empty: all.")
    paused: bool
    gated: bool = Field(description="All gates had passed.")
    actor: str
    reason: str
    evidence: dict[str, Any] = Field(description="The figures that it rests on.")

    @classmethod
    def of(cls, event: RolloutEvent) -> Self:
        values = {name: getattr(event, name) for name in event.__slots__}
        return cls.model_validate(values | {"at": time_of(event), "evidence": dict(event.evidence)})


class PositionResponse(BaseModel):
    """Where a version is."""

    model_config = ConfigDict(from_attributes=True)

    kind: Kind
    version: str
    digest: str
    stage: Stage
    share: float = Field(description="Of the tips in `segment`, from 0 to 1.")
    segment: str = Field(description="The segment of users that the version is for; empty: all.")
    paused: bool = Field(description="Nothing promotes the version until it is resumed.")
    rollout: int
    event: int = Field(description="The id of the last event of this rollout.")
    stage_since: datetime
    started: datetime


class MoveResponse(BaseModel):
    """The target of the next promotion."""

    model_config = ConfigDict(from_attributes=True)

    step: Step
    stage: Stage
    share: float
    segment: str


class GateResponse(BaseModel):
    """A gate of the next promotion."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    passed: bool
    figure: str
    bound: str
    sentence: str


class LimitsResponse(BaseModel):
    """An estimate, and two limits of which each holds alone, at every look."""

    model_config = ConfigDict(from_attributes=True)

    estimate: float
    low: float
    high: float


class SliceResponse(BaseModel):
    """The reward minus the champion's in one segment of users."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    tips: int
    limits: LimitsResponse | None = Field(description="They hold for all slices at once; None without tips.")
    status: Status = Field(description="`unknown`: there are too few tips, which is no pass.")


class VersionCountsResponse(BaseModel):
    """The draws of a version since its stage began."""

    model_config = ConfigDict(from_attributes=True)

    version: str
    drawn: int
    failed: int
    fallback: int = Field(description="Written by a fallback model.")
    usable: int
    seen: int
    mature: int = Field(description="Usable tips whose reward is known.")
    reward: float = Field(description="The sum of the rewards of the mature tips.")


class RolloutSummary(BaseModel):
    """A rollout: where it is, and the gates of its next step."""

    rollout: int
    kind: Kind
    version: str
    digest: str
    stage: Stage = Field(description="`registered` if the rollout has ended.")
    position: PositionResponse | None = Field(description="None if the rollout has ended.")
    next: MoveResponse | None = Field(description="None for a champion, and if the rollout has ended.")
    gates: list[GateResponse] = Field(description="Of the next step.")


class RolloutResponse(RolloutSummary):
    """A rollout with its figures and its history."""

    detectable: list[str] = Field(description="How many tips it takes to find a harm at the next share.")
    slices: list[SliceResponse]
    funnel: list[VersionCountsResponse] = Field(description="Of the champion and of this version.")
    events: list[RolloutEventResponse] = Field(description="The oldest first.")

    @classmethod
    def of(cls, report: RolloutReport) -> Self:
        values = {
            "detectable": report.detectable,
            "slices": [SliceResponse.model_validate(each) for each in report.evidence.slices],
            "funnel": [VersionCountsResponse.model_validate(each) for each in report.evidence.funnel],
            "events": [RolloutEventResponse.of(event) for event in report.events],
        }
        return cls.model_validate(_summary(report) | values)


class ProposalResponse(BaseModel):
    """A version that a batch job proposes for a rollout, which has not begun."""

    kind: Kind
    version: str
    at: datetime
    source: str = Field(description="Where serving finds the version, such as `models:/tips/3`.")
    evidence: dict[str, Any] = Field(description="The figures that speak for it.")
    gates: list[GateResponse] = Field(description="Of its start.")

    @classmethod
    def of(cls, report: ProposalReport) -> Self:
        proposal = report.proposal
        return cls(
            kind=proposal.kind,
            version=proposal.version,
            at=proposal.at,
            source=proposal.source,
            evidence=dict(proposal.evidence),
            gates=[GateResponse.model_validate(each) for each in report.gates],
        )


class RolloutsResponse(BaseModel):
    """All rollouts."""

    event: int = Field(description="The id of the last event; 0 without any.")
    champions: list[PositionResponse] = Field(description="Of each kind that has one.")
    open: list[RolloutSummary] = Field(description="In shadow, and canaries.")
    proposals: list[ProposalResponse] = Field(description="Of batch jobs; an operator or the monitor starts them.")
    ended: list[RolloutEventResponse] = Field(description="The last event of each other rollout, the newest first.")
    not_gated: list[str] = Field(description="What rollouts do not decide.")
    model: str = Field(description="The language model of serving, as last recorded; empty before.")

    @classmethod
    def of(cls, overview: RolloutOverview) -> Self:
        return cls(
            event=overview.event,
            champions=[PositionResponse.model_validate(each) for each in overview.champions.values()],
            open=[RolloutSummary.model_validate(_summary(report)) for report in overview.open],
            proposals=[ProposalResponse.of(each) for each in overview.proposals],
            ended=[RolloutEventResponse.of(event) for event in overview.ended],
            not_gated=list(overview.not_gated),
            model=overview.model,
        )


def _summary(report: RolloutReport) -> dict[str, Any]:
    position = report.position
    return {
        "rollout": report.rollout,
        "kind": report.kind,
        "version": report.version,
        "digest": report.digest,
        "stage": report.stage,
        "position": position and PositionResponse.model_validate(position),
        "next": report.move and MoveResponse.model_validate(report.move),
        "gates": [GateResponse.model_validate(each) for each in report.gates],
    }


class HoldoutResponse(BaseModel):
    """Users who follow rollouts compared with held-out users, each user counting once; for one look."""

    model_config = ConfigDict(from_attributes=True)

    difference: LimitsResponse | None = Field(
        description="Of the mean rewards, with a 95 % interval for one look; None with fewer than 20 users in a group."
    )
    held_out: int = Field(description="Held-out users with mature tips.")
    following: int = Field(description="Other users with mature tips.")
    words: str
