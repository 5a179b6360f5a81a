"""Sums over the stored draws of prompt versions and of ranking policies, for the evidence about a rollout. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from ml.experiments.comparison import Stratum
from ml.experiments.sample_ratio import sample_ratio
from ml.experiments.statistics import Sample
from ml.rollouts.evidence import VersionCounts
from ml.store.day_counts import DrawCounts, RankingCounts
from ml.store.strata import DigestedVersion, strata_of

Counts = DrawCounts | RankingCounts


def is_rewarded(draw: Counts, *, seen_only: bool) -> bool:
    """Return whether the rewards of draws are known and count."""
    return draw.mature and draw.outcome == "comparable" and (draw.seen or not seen_only)


def reward_strata(
    draws: Iterable[Counts], baseline: DigestedVersion, other: DigestedVersion, *, seen_only: bool
) -> list[Stratum]:
    """Return the strata of a pair of prompt versions, or of ranking policies, whose digests are their versions."""
    rewarded = [draw for draw in draws if is_rewarded(draw, seen_only=seen_only)]
    of_policies = [
        Stratum(draw.day, draw.options, draw.policy_version, Sample(draw.tips, draw.reward, draw.reward_squared))
        for draw in rewarded
        if isinstance(draw, RankingCounts)
    ]
    return strata_of([draw for draw in rewarded if isinstance(draw, DrawCounts)], baseline, other) + of_policies


def version_of(draw: Counts) -> str:
    """Return the version that was drawn."""
    return draw.prompt_version if isinstance(draw, DrawCounts) else draw.policy_version


def indicator(tips: int, value: bool) -> Sample:
    """Return the rewards of tips that all have the reward 1, or all 0."""
    return Sample(tips, tips * value, tips * value)


def unusable_strata(draws: Iterable[Counts]) -> list[Stratum]:
    """Return strata in which an unusable tip has the reward 1. They are known at once, so draws need not be mature.

    Failures have no digest; but within a window each version has one, since another one is not served.
    """
    return [
        Stratum(draw.day, draw.options, version_of(draw), indicator(draw.tips, draw.outcome in ("failed", "fallback")))
        for draw in draws
        if draw.outcome in ("comparable", "failed", "fallback")
    ]


def has_ratio_alarm(draws: Iterable[Counts]) -> bool:
    """Return whether versions do not occur as often as their shares say."""
    counts: dict[tuple[tuple[str, float], ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for draw in draws:
        if len(draw.options) > 1:
            counts[tuple(sorted(draw.options.items()))][version_of(draw)] += draw.tips
    return sample_ratio((dict(options), versions) for options, versions in counts.items()).alarm


def version_counts(draws: Iterable[Counts], versions: Iterable[str], *, seen_only: bool) -> tuple[VersionCounts, ...]:
    """Return the funnel of each version, in their order; draws per user do not count."""
    rows = {version: VersionCounts(version) for version in versions if version}
    for draw in draws:
        version = version_of(draw)
        if version not in rows or draw.outcome == "per_user":
            continue
        row, usable = rows[version], draw.outcome == "comparable"
        rewarded = is_rewarded(draw, seen_only=seen_only)
        rows[version] = replace(
            row,
            drawn=row.drawn + draw.tips,
            failed=row.failed + draw.tips * (draw.outcome == "failed"),
            fallback=row.fallback + draw.tips * (draw.outcome == "fallback"),
            usable=row.usable + draw.tips * usable,
            seen=row.seen + draw.tips * (usable and draw.seen),
            mature=row.mature + draw.tips * rewarded,
            reward=row.reward + draw.reward * rewarded,
        )
    return tuple(rows.values())


def mean_reward(funnel: Iterable[VersionCounts], version: str) -> float | None:
    """Return the mean reward of the mature tips of a version; None without any."""
    return next((row.reward / row.mature for row in funnel if row.version == version and row.mature), None)
