"""Which prompt version the next tip is asked of: what `TIP_PROMPT_VERSION` says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ml.experiments.assignment import weighted

POLICY_VERSION = "1"
"""Of all policies here; raise it when one of them comes to choose in another way."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, by which policy, among which options, and how probable that was.

    `asked` is None, and `options` empty, where serving's default decides.
    """

    asked: str | None
    policy: str
    options: Mapping[str, float]
    probability: float = 1.0
    policy_version: str = POLICY_VERSION


class Rotation:
    """Chooses a version for each request at random, by weight."""

    def __init__(self, versions: Sequence[tuple[str, float]], uniform: Callable[[], float]) -> None:
        """Take the versions with their weights, none for serving's default; `uniform` draws from [0, 1)."""
        self._weights = dict(versions)
        self._uniform = uniform

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions chosen among, in the operator's order."""
        return tuple(self._weights)

    def choose(self) -> Choice:
        """Choose a version for one request."""
        if not self._weights:
            return Choice(None, "serving-default", {})
        drawn = weighted(self._weights, self._uniform())
        policy = {1: "single"}.get(len(self._weights), "weighted" if len({*self._weights.values()}) > 1 else "uniform")
        return Choice(drawn.option, policy, drawn.distribution, drawn.probability)
