"""Which prompt version a tip is asked of: what `TIP_PROMPT_VERSION` and `TIP_PROMPT_POLICY` say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ml.experiments.assignment import draw_sticky, draw_weighted, hash_to_unit_interval
from ml.experiments.statistics import Sample
from ml.experiments.thompson import ThompsonSampling
from ml.platform.settings import PromptPolicyName

POLICY_VERSION = "2"
"""Of all policies here; raise it when one of them comes to choose in another way."""

SALT = "prompt-version"
"""In every hash here. Which version people have under `sticky` hangs on it: with another one, nearly all would move."""

PLAYGROUND = "playground"
"""In the place of a policy: somebody sees a tip of every version, so none was drawn."""


@dataclass(frozen=True, slots=True)
class PromptSelection:
    """What was chosen, by which policy, among which options, and how probable that was.

    `asked` is None, and `options` empty, where serving's default decides.
    """

    asked: str | None
    policy: str
    options: Mapping[str, float]
    probability: float = 1.0
    policy_version: str = POLICY_VERSION


class PromptSelector:
    """Chooses a version for each tip.

    All chance comes from hashes of ids, so every choice can be made again from the row of its tip: by `weighted` from
    `options` and the id of the tip, under `sticky` by that from `options` and the id of the person.
    """

    def __init__(self, versions: Sequence[tuple[str, float]], policy: PromptPolicyName = "uniform") -> None:
        """Take the versions with their weights, none for serving's default."""
        self._weights = dict(versions)
        self._policy = policy
        self._name: str = policy
        if policy == "uniform":
            unequal = len({*self._weights.values()}) > 1
            self._name = {0: "serving-default", 1: "single"}.get(len(versions), "weighted" if unequal else "uniform")

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions chosen among, in the operator's order."""
        return tuple(self._weights)

    @property
    def learns(self) -> bool:
        """Whether choices follow from what versions have earned."""
        return self._policy == "thompson"

    def learn(self, earned: Mapping[str, Sample]) -> None:
        """From now on choose by what each version has earned; one that is not in `earned` has no rewards yet."""
        arms = {version: earned.get(version, Sample()) for version in self._weights}
        self._weights = ThompsonSampling().distribution(arms)

    def choose(self, user_id: str, tip_id: str) -> PromptSelection:
        """Choose a version for a tip; the same one for the same ids, until the weights change."""
        if not self._weights:
            return PromptSelection(None, self._name, {})
        if self._policy == "sticky":
            drawn = draw_sticky(self._weights, user_id, salt=SALT)
        else:
            drawn = draw_weighted(self._weights, hash_to_unit_interval(SALT, tip_id))
        return PromptSelection(drawn.option, self._name, drawn.distribution, drawn.probability)
