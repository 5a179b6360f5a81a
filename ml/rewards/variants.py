"""The variants of a report: prompt versions with one digest, and the sums over their tips."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from ml.experiments.confidence_sequence import rate
from ml.experiments.statistics import Interval, Sample
from ml.rewards.comparison import ALPHA, Arm, Comparison
from ml.rewards.funnel import PeriodCounts
from ml.store.day_counts import DayCounts
from ml.store.reactions import REACTIONS
from ml.store.rollup import ALL_TIPS, RewardCounts

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class DayReward:
    """One day of one variant: the number of its counted tips, at least 1, and their mean reward."""

    day: date
    counted: int
    reward: float


@dataclass(frozen=True, slots=True)
class Variant:
    """A prompt version with one digest, and what was counted for it.

    `tips`: all of them, of which `reacted` have a reaction; each is in one of the next four. `counted`: the mature
    ones that count: `reward` and `days` are over these only, and None or empty without them. `young`: tips whose
    reaction window has not ended. `dependent`: tips that a learned policy chose among candidates, or whose version was
    drawn per user. `unseen`: mature tips without an exposure, where exposures are reported; of these,
    `exposure_unknown` are older than the first report. `reactions`, and the means per tip `input_tokens`,
    `output_tokens` and `ms`, are over all tips.
    """

    prompt_version: str
    prompt_digest: str
    label: str
    tips: int
    reacted: int
    counted: int
    young: int
    dependent: int
    unseen: int
    exposure_unknown: int
    reactions: Mapping[str, int]
    reward: Interval | None
    comparison: Comparison | None
    input_tokens: float
    output_tokens: float
    ms: float
    days: tuple[DayReward, ...]


@dataclass(slots=True)
class Tally:
    """The sums over the shown tips of one prompt version with one digest."""

    prompt_version: str
    prompt_digest: str
    label: str
    tip_counts: RewardCounts = field(default_factory=RewardCounts)
    young: int = 0
    dependent: int = 0
    unseen: int = 0
    exposure_unknown: int = 0
    reactions: Counter[str] = field(default_factory=Counter)
    days: dict[int, Sample] = field(default_factory=lambda: defaultdict(Sample))
    newest_day: int = 0

    def add(self, count: DayCounts, *, exposure_known: bool, exposure_reported: bool) -> None:
        self.newest_day = max(self.newest_day, count.day)
        tips = count.tips if count.reaction == ALL_TIPS else 0
        tokens = {"input_tokens": count.input_tokens, "output_tokens": count.output_tokens}
        self.tip_counts.add(RewardCounts(tips, ms=count.ms, **tokens))
        if count.reaction != ALL_TIPS:
            self.reactions[count.reaction] += count.tips
        # The mean of ranked tips is the one of the best among several candidates. Tips of one user are correlated:
        # where a user has one version, intervals that count tips are too narrow.
        if count.dependent:
            self.dependent += tips
        elif not count.mature:
            self.young += tips
        elif exposure_reported and not count.seen:
            self.unseen += tips
            self.exposure_unknown += 0 if exposure_known else tips
        else:
            self.days[count.day] += Sample(tips, count.reward, count.reward_squared)

    @property
    def arm(self) -> Arm:
        return Arm(self.prompt_version, self.prompt_digest, self.label, self.dependent + self.unseen)

    def variant(self, comparison: Comparison | None) -> Variant:
        tips = self.tip_counts.tips
        counted = sum(sample.n for sample in self.days.values())
        return Variant(
            prompt_version=self.prompt_version,
            prompt_digest=self.prompt_digest,
            label=self.label,
            tips=tips,
            reacted=self.reactions.total(),
            counted=counted,
            young=self.young,
            dependent=self.dependent,
            unseen=self.unseen,
            exposure_unknown=self.exposure_unknown,
            reactions={
                kind: self.reactions[kind] for kind in [*REACTIONS, *sorted(self.reactions.keys() - REACTIONS.keys())]
            },
            reward=rate(self.days, alpha=ALPHA) if counted else None,
            comparison=comparison,
            input_tokens=self.tip_counts.input_tokens / tips,
            output_tokens=self.tip_counts.output_tokens / tips,
            ms=self.tip_counts.ms / tips,
            days=tuple(
                DayReward(_EPOCH + timedelta(days=day), sample.n, sample.mean)
                for day, sample in sorted(self.days.items())
                if sample.n
            ),
        )


def tallies_of(unknown: PeriodCounts, known: PeriodCounts, *, exposure_reported: bool) -> list[Tally]:
    """Return a tally for each prompt version and digest that has tips, sorted by both.

    The label of a version with several digests includes the start of the digest.
    """
    counts = [*((count, False) for count in unknown.tips), *((count, True) for count in known.tips)]
    included = [(count, is_known) for count, is_known in counts if count.tips and count.shown and not count.fallback]
    keys = sorted({(count.prompt_version, count.prompt_digest) for count, _ in included})
    digests = Counter(version for version, _ in keys)
    tallies = {
        (version, digest): Tally(version, digest, f"{version} ({digest[:8]})" if digests[version] > 1 else version)
        for version, digest in keys
    }
    for count, is_known in included:
        tally = tallies[count.prompt_version, count.prompt_digest]
        tally.add(count, exposure_known=is_known, exposure_reported=exposure_reported)
    return list(tallies.values())
