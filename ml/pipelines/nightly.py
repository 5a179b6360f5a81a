"""The nightly batch job: from the tips of a day to a policy that is proposed for a rollout.

    export → aggregates → materialize → train → evaluate → monitor → card → register → propose

Each step is a function of the day and of the URI that an earlier step returned, and returns a URI: a path in the
offline store, the online store, or the version in MLflow. A step can be repeated: the same data gives the same files,
and what is made of the same sources is not made again. So a job that was killed is simply started again. Nothing that
users see changes: a rollout of the proposed policy begins when an operator or the monitor starts it.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from ml.experiments.regression_statistics import MAX_ROWS
from ml.experiments.rollout_state import RolloutState, fold
from ml.features import online_store
from ml.features.offline_store import OfflineStoreUnavailable, date_of_day, start_of_day
from ml.pipelines.aggregates import (
    snapshot,
    write_decision_aggregates,
    write_snapshots,
)
from ml.pipelines.cached_statistics import cached_statistics
from ml.pipelines.drift import drift_figures
from ml.pipelines.evaluated_decisions import NothingToEvaluate
from ml.pipelines.evaluation import evaluate as evaluate_target
from ml.pipelines.export import export as export_tips
from ml.pipelines.nightly_files import as_json
from ml.pipelines.nightly_job import NightlyJob, NothingToLearn
from ml.pipelines.offline_lease import hold_offline_store
from ml.pipelines.targets import RankingTarget
from ml.pipelines.training import train_with, training_data
from ml.platform.settings import ConfigurationError
from ml.registry.artifacts import HeldOutFigures, RankingPolicy, UnusablePolicyError
from ml.registry.cards import ModelCard
from ml.registry.policies import load_policy
from ml.registry.ranking_cards import drift_metrics, ranking_card
from ml.store.batch_reports import DRIFT, BatchReport, BatchReports
from ml.store.database import Database
from ml.store.evidence import EvidenceLog
from ml.store.proposals import Proposal, Proposals
from ml.store.rollouts import RolloutLog

PROPOSED = "proposed"
"""The alias in MLflow of the newest policy that was registered by this job."""
EVIDENCE = "nightly_gain"
"""The name of the evidence about rollouts: the gain by off-policy evaluation, on decisions after the training."""
_POLICY, _EVALUATION, _DRIFT, _CARD = "policy.npz", "evaluation.json", "drift.json", "card.json"


Step = Callable[[NightlyJob, int, str], str]
"""A step: from the day (since 1970) and the URI of its input to that of its output."""


def export(job: NightlyJob, day: int, uri: str) -> str:  # noqa: ARG001
    """Export all days that have changed; return the table of tips."""
    export_tips(job.database_url, job.offline)
    return "tip_scores"


def aggregates(job: NightlyJob, day: int, uri: str) -> str:  # noqa: ARG001
    """Compute the aggregates of each decision, and those of each user at the end of the day; return these."""
    with hold_offline_store(job.database_url, job.offline) as held:

        def keep_lease() -> None:
            if held.is_due:
                held.renew()

        engine = job.aggregate_engine
        write_decision_aggregates(job.offline, job.counted, step=keep_lease, engine=engine)
        write_snapshots(job.offline, job.counted, [day], step=keep_lease, engine=engine)
        held.renew()
        job.offline.commit()
    return job.offline.days("snapshots")[day].path


def materialize(job: NightlyJob, day: int, uri: str) -> str:  # noqa: ARG001
    """Write the users' aggregates at the end of the day to the online store; return its name.

    Without an online store, and about a day before yesterday, it writes nothing and returns "".
    """
    computed_at = start_of_day(day + 1)
    if job.online_store_url is None or job.clock() - computed_at >= timedelta(days=1):
        return ""
    online_store.replace_all(job.online_store_url, snapshot(job.offline, day), computed_at)
    return online_store.store_name(job.online_store_url)


def train(job: NightlyJob, day: int, uri: str) -> str:  # noqa: ARG001
    """Train a policy on all decisions that are mature at the end of the day; return its file.

    Raises NothingToLearn without such decisions.
    """
    before = job.mature_before(day)

    def make() -> bytes:
        log = job.log.bounded(MAX_ROWS)
        statistics = partial(cached_statistics, log, processes=job.processes, compute=job.store_statistics)
        data = training_data(log, before=before, days_of=statistics, share=log.share)
        if not data.decisions:
            raise NothingToLearn(f"No tip is old enough to learn from at the end of {date_of_day(day)}.")
        return train_with(data, name=job.policy_name)

    source = [_sources(job, before), before, job.policy_name, job.counted.source, job.release]
    return job.files(day).make(_POLICY, source, make)


def evaluate(job: NightlyJob, day: int, uri: str) -> str:
    """Evaluate the policies of open rollouts on decisions after their training, and record that as their evidence.

    Returns a file with these figures and with those of the new policy on held-out days.
    """
    files, policy = job.files(day), _policy(job, day, uri)
    before = job.mature_before(day)
    rollouts = {each.version: each.rollout for each in _rollouts(job).policy.positions.values()}

    def make() -> bytes:
        gains = {version: _gain(job, version, before) for version in rollouts}
        return as_json({"policy": policy.version, "held_out": _metrics(policy.card.held_out), "rollouts": gains})

    source = [policy.version, sorted(rollouts), _sources(job, before), job.release]
    path = files.make(_EVALUATION, source, make)
    for version, gain in files.read_json(path)["rollouts"].items():
        if gain is not None:
            job.in_database(partial(_record, rollout=rollouts[version], at=job.clock(), gain=gain))
    return path


def monitor(job: NightlyJob, day: int, uri: str) -> str:
    """Compare the day's features with those that `/score` used and with those of the days before; return the figures.

    They are also stored as the day's report `drift`.
    """
    files, policy = job.files(day), _policy(job, day, uri)
    source = [policy.version, _sources(job, start_of_day(day + 1).timestamp()), job.counted.source, job.release]
    path = files.make(_DRIFT, source, lambda: as_json(drift_figures(job.log, policy, day, job.counted)))
    report = BatchReport(day, DRIFT, job.clock(), files.read_json(path))
    job.in_database(lambda database: BatchReports(database).record(report))
    return path


def card(job: NightlyJob, day: int, uri: str) -> str:
    """Write the model card of the policy, with the figures of the drift; return its file."""
    files, policy = job.files(day), _policy(job, day)
    drift = files.read_json(uri)

    def make() -> bytes:
        described = ranking_card(policy.card, policy.version, contact=job.contact)
        metrics = (*described.metrics, *drift_metrics(drift))
        return described.model_copy(update={"metrics": metrics}).model_dump_json(indent=1).encode()

    return files.make(_CARD, [policy.version, drift, job.contact, job.release], make)


def register(job: NightlyJob, day: int, uri: str) -> str:
    """Register the policy in MLflow, unless it is, and move the alias `proposed` to it; return its version there."""
    from ml.registry import models  # MLflow takes seconds to import, and is an extra

    files, policy = job.files(day), _policy(job, day)
    try:
        described = ModelCard.model_validate_json(files.read(uri))
    except ValidationError:
        raise OfflineStoreUnavailable(f"{job.offline.url}/{uri} is not a model card: run the step before") from None
    number = models.find_version(job.policy_name, policy.version, job.tracking_uri)
    if number is None:
        training = {"day": str(date_of_day(day)), "reaction_window": str(job.counted.reaction_window)}
        blob = files.read(files.path(_POLICY))
        number = models.register(blob, job.policy_name, job.tracking_uri, training=training, model_card=described)
    try:
        models.set_aliases(job.policy_name, {PROPOSED: policy.version}, job.tracking_uri)
    except models.RegistryError as error:
        raise ConfigurationError(str(error)) from None
    return f"{models.SCHEME}{job.policy_name}/{number}"


def propose(job: NightlyJob, day: int, uri: str) -> str:
    """Propose a rollout of the policy; return its version.

    A policy that is in use, or that is worse than the log on held-out days (the upper limit of its gain is below 0), is
    not proposed; then it returns "".
    """
    files, policy = job.files(day), _policy(job, day)
    track = _rollouts(job).policy
    used = {each.version for each in (*track.positions.values(), *([track.champion] if track.champion else []))}
    held_out = _metrics(policy.card.held_out)
    if policy.version in used or ("gain" in held_out and held_out["gain"]["high"] < 0):
        return ""
    evidence = {"day": str(date_of_day(day)), "held_out": held_out, DRIFT: files.read_json(files.path(_DRIFT))}
    proposal = Proposal("policy", policy.version, job.clock(), uri, evidence)

    async def put(database: Database) -> None:
        proposals = Proposals(database)
        if await proposals.find("policy", policy.version) is None:
            await proposals.put(proposal)

    job.in_database(put)
    return policy.version


STEPS: Mapping[str, Step] = MappingProxyType(
    {
        "export": export,
        "aggregates": aggregates,
        "materialize": materialize,
        "train": train,
        "evaluate": evaluate,
        "monitor": monitor,
        "card": card,
        "register": register,
        "propose": propose,
    }
)
INPUTS: Mapping[str, str] = MappingProxyType(
    {
        "aggregates": "export",
        "materialize": "aggregates",
        "train": "aggregates",
        "evaluate": "train",
        "monitor": "train",
        "card": "monitor",
        "register": "card",
        "propose": "register",
    }
)
"""The step whose output is the input of each step; the first one has none."""


def run_steps(job: NightlyJob, day: int) -> Iterator[tuple[str, str]]:
    """Run all steps, and yield the name and the output of each. Raises NothingToLearn before the first tips."""
    outputs: dict[str, str] = {}
    for name, step in STEPS.items():
        outputs[name] = step(job, day, outputs[INPUTS[name]] if name in INPUTS else "")
        yield name, outputs[name]


def _sources(job: NightlyJob, before: float) -> list[list[str]]:
    """Return what the files of the decisions before a time, in Unix seconds, were made from."""
    return [
        [str(day), *(file.source if file else "" for file in of_day)]
        for day, of_day in job.log.days().items()
        if start_of_day(day).timestamp() < before
    ]


def _policy(job: NightlyJob, day: int, path: str = "") -> RankingPolicy:
    """Return the policy in a file, by default that of the day. Raises OfflineStoreUnavailable if it has none."""
    files = job.files(day)
    path = path or files.path(_POLICY)
    try:
        return RankingPolicy.from_bytes(files.read(path))
    except UnusablePolicyError as error:
        raise OfflineStoreUnavailable(f"{job.offline.url}/{path} {error}") from None


def _rollouts(job: NightlyJob) -> RolloutState:
    return fold(job.in_database(lambda database: RolloutLog(database).events()))


async def _record(database: Database, *, rollout: int, at: datetime, gain: Mapping[str, Any]) -> None:
    await EvidenceLog(database).record(rollout, at, {EVIDENCE: gain})


def _gain(job: NightlyJob, version: str, before: float) -> dict[str, Any] | None:
    """Return the gain of a registered policy over the log since its training; None if it cannot be estimated."""
    from ml.registry import models  # as above

    number = models.find_version(job.policy_name, version, job.tracking_uri)
    if number is None:  # it is from a file
        return None
    try:
        policy = load_policy(f"{models.SCHEME}{job.policy_name}/{number}", job.tracking_uri)
        report = evaluate_target(job.log, RankingTarget(policy), since=policy.trained_until, before=before)
    except (NothingToEvaluate, UnusablePolicyError):
        return None
    if report.gain is None:
        return None
    interval = {name: round(getattr(report.gain, name), 6) for name in ("estimate", "low", "high")}
    return {
        **interval,
        "decisions": report.decisions,
        "effective_sample_size": round(report.best.effective_sample_size),
    }


def _metrics(figures: HeldOutFigures | None) -> dict[str, dict[str, Any]]:
    """Return the metrics on held-out days, by name."""
    return {each.name: each.model_dump(exclude={"name"}) for each in figures.metrics} if figures else {}
