"""Whether what `/score` sees has changed: train/serve equality, and the drift of the inputs of a day.

- Equality: the aggregates that `/score` used are computed again from the log, as of the same times. All numbers that a
  policy ranks by follow from these and from the logged signals, by the encoder that training uses as well, so equal
  aggregates are equal features. A difference is a defect: of the online store, or of the log.
- Drift: the distribution of each feature on the day, compared with that of the `REFERENCE_DAYS` days before, as the
  population stability index: the sum over bins of (p - q) ln(p / q), with half a decision added to each bin. Without
  any change its expectation is about (bins - 1) (1/n + 1/m), which `expected` states; a value far above is a change,
  and by convention one above 0.25 is large. Source: Yurdakul & Naranjo, "Statistical properties of the population
  stability index", Journal of Risk Model Validation 2020.
- Values that the days before did not have, and tips of prompt versions that the policy does not know.
- The effective sample size of off-policy evaluation of the policy, as a share of the decisions: when it decays, the
  log says less about the policy.

Equality is of the first `CHECKED` tips of the day, everything else of samples, chosen by a hash of the decisions' ids.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.decisions import LoggedDecision
from ml.experiments.off_policy_log import effective_number
from ml.features.definitions import AGGREGATES, SIGNALS
from ml.features.feature_types import FeatureType, TimeOfDay, part_of_day
from ml.features.offline_store import date_of_day, start_of_day
from ml.features.text_types import Text, Texts
from ml.pipelines.aggregates import CountedTips, logged_aggregates, recomputed
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.pipelines.targets import RankingTarget
from ml.registry.artifacts import RankingPolicy
from ml.registry.policies import LearnedPolicy

REFERENCE_DAYS = 7
SAMPLE = 20_000
"""The rows of tips, of the day and of the days before, with the decisions whose features are compared."""
RANKED_SAMPLE = 5_000
"""The decisions of each whose candidates the policy ranks."""
CHECKED = 10_000
"""The tips whose aggregates are computed again."""
QUANTILES = 10
"""The bins of a number have equally many decisions of the days before."""
MAX_UNSEEN = 20
"""The new values of a feature that are named."""
DIGITS = 6
_MISSING = "missing"


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """The drift of a feature. `unseen`: the share of decisions with a value that the days before did not have."""

    psi: float
    expected: float
    unseen: float
    unseen_values: tuple[str, ...]


def drift_figures(log: OfflineDecisionLog, policy: RankingPolicy, day: int, counted: CountedTips) -> dict[str, Any]:
    """Return the figures of a day (since 1970) as JSON. Raises OfflineStoreUnavailable."""
    today = _sample(log, range(day, day + 1))
    before = _sample(log, range(day - REFERENCE_DAYS, day))
    return {
        "day": str(date_of_day(day)),
        "policy": policy.version,
        "equality": equality(log, day, counted),
        "decisions": len(today),
        "reference_decisions": len(before),
        "features": {name: asdict(each) for name, each in feature_drifts(today, before).items()},
        "unknown_version_share": _unknown_version_share(policy, today),
        "effective_share": _effective_share(policy, today),
        "reference_effective_share": _effective_share(policy, before),
    }


def equality(log: OfflineDecisionLog, day: int, counted: CountedTips) -> dict[str, int]:
    """Return how many tips of a day with aggregates were checked, and of how many the log gives others."""
    logged = [*islice(logged_aggregates(log.store, day), CHECKED)]
    again = recomputed(log.store, logged, counted)
    different = sum(dict(each.aggregates) != dict(other) for each, other in zip(logged, again, strict=True))
    return {"checked": len(logged), "different": different}


def feature_drifts(today: Sequence[LoggedDecision], before: Sequence[LoggedDecision]) -> Mapping[str, FeatureDrift]:
    """Return the drift of each signal, of each aggregate and of the prompt version; empty without decisions."""
    if not today or not before:
        return {}
    drifts = {name: _drift(signal.type, *_values(name, today, before)) for name, signal in SIGNALS.items()}
    drifts |= {name: _drift(aggregate.type, *_values(name, today, before)) for name, aggregate in AGGREGATES.items()}
    versions = ([each.candidates[each.chosen].prompt_version for each in part] for part in (today, before))
    return drifts | {"prompt_version": _drift(None, *versions)}


def _sample(log: OfflineDecisionLog, days: range) -> list[LoggedDecision]:
    """Return the decisions of about `SAMPLE` rows of these days, always the same ones of the same log."""
    files = {day: file for day, (file, _) in log.days().items() if day in days}
    rows = sum(file.rows for file in files.values())
    sampled = log.sample(min(1.0, SAMPLE / rows)) if rows else log
    since, before = (start_of_day(day).timestamp() for day in (days.start, days.stop))
    return [decision for chunk in sampled.chunks(since, before) for decision in chunk]


def _values(
    name: str, today: Sequence[LoggedDecision], before: Sequence[LoggedDecision]
) -> tuple[list[Any], list[Any]]:
    first, second = ([each.signals.get(name, each.aggregates.get(name)) for each in part] for part in (today, before))
    return first, second


def _drift(type_: FeatureType | None, today: Iterable[Any], before: Iterable[Any]) -> FeatureDrift:
    """Return the drift of a feature of a type, None for a name."""
    new, old = [_category(type_, value) for value in today], [_category(type_, value) for value in before]
    unseen: Counter[str] = Counter()
    if any(isinstance(value, float) for value in (*new, *old)):
        edges = np.unique(np.quantile([value for value in old if isinstance(value, float)] or [0.0], _LEVELS))
        new, old = _binned(new, edges), _binned(old, edges)
    else:
        known = {*old}
        unseen = Counter(str(value) for value in new if value not in known)
    counts, reference = Counter(new), Counter(old)
    bins = sorted({*counts, *reference}, key=str)
    p, q = (_shares(of, bins) for of in (counts, reference))
    return FeatureDrift(
        psi=_round(float(((p - q) * np.log(p / q)).sum())),
        expected=_round((len(bins) - 1) * (1 / len(new) + 1 / len(old))),
        unseen=_round(unseen.total() / len(new)),
        unseen_values=tuple(sorted(unseen)[:MAX_UNSEEN]),
    )


_LEVELS = np.arange(1, QUANTILES) / QUANTILES


def _category(type_: FeatureType | None, value: Any) -> float | str:
    """Return a number, or the name of a category; of free text only whether there is any."""
    if value is None:
        return _MISSING
    if isinstance(type_, Text | Texts):
        return "present"
    if isinstance(type_, TimeOfDay):
        return part_of_day(value)
    return float(value) if isinstance(value, int | float) else str(value)


def _binned(values: Sequence[float | str], edges: Floats) -> list[float | str]:
    return [value if isinstance(value, str) else float(np.searchsorted(edges, value, side="right")) for value in values]


def _shares(counts: Mapping[float | str, int], bins: Sequence[float | str]) -> Floats:
    smoothed = np.array([counts.get(each, 0) + 0.5 for each in bins])
    shares: Floats = smoothed / smoothed.sum()
    return shares


def _unknown_version_share(policy: RankingPolicy, decisions: Sequence[LoggedDecision]) -> float | None:
    """Return the share of tips of a prompt version that the policy has not learned about."""
    if not decisions:
        return None
    shown = (decision.candidates[decision.chosen].prompt_version for decision in decisions)
    return _round(sum(version not in policy.card.versions for version in shown) / len(decisions))


def _effective_share(policy: RankingPolicy, decisions: Sequence[LoggedDecision]) -> float | None:
    """Return the effective sample size of the importance weights of the policy, as a share of the decisions."""
    some = decisions[:: 1 + len(decisions) // RANKED_SAMPLE]
    distributions = RankingTarget(LearnedPolicy(policy)).probabilities(some)
    weights = np.array(
        [
            distribution[decision.chosen] / decision.candidates[decision.chosen].probability
            for decision, distribution in zip(some, distributions, strict=True)
        ]
    )
    return _round(effective_number(weights) / weights.size) if weights.size else None


def _round(value: float) -> float:
    return round(value, DIGITS) + 0.0
