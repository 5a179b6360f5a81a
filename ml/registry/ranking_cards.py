"""The model cards of ranking policies."""

from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from ml.features.definitions import CANDIDATE
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder
from ml.registry.artifacts import PolicyCard
from ml.registry.cards import UNIFORM, CardInput, Metric, ModelCard, describe_inputs

SAFETY = (
    "It chooses among tips that have passed the checks for their content, and writes none.",
    "Every candidate keeps a probability above 0, so every decision can be evaluated.",
)
MAX_NAMES = 10
"""The maximum number of prompt versions that a card names."""
OPERATOR_LICENCE = "It belongs to the operator of this service, whose decisions it was trained on."


@cache  # their JSON schemas take 30 ms
def feature_inputs() -> Mapping[str, CardInput]:
    """Return the signals, the aggregates and the features of candidates as inputs, by name."""
    inputs = describe_inputs({**CONTEXT_ENCODER.feature_types, **CANDIDATE})
    return MappingProxyType({each.name: each for each in inputs})


def uniform_card(*, contact: str | None) -> ModelCard:
    """Return the card of the policy without training."""
    return ModelCard(
        name=UNIFORM,
        kind="policy",
        version=UNIFORM,
        digest=UNIFORM,
        purpose="Gives every candidate the same probability of being shown.",
        inputs=tuple(feature_inputs()[name] for name in CANDIDATE),
        limits=("It prefers no candidate, so it uses nothing that is known about a user.",),
        safety=SAFETY,
        licence="apache-2.0",
        contact=contact,
    )


def ranking_card(card: PolicyCard, version: str, *, contact: str | None) -> ModelCard:
    """Return the model card of a learned policy from the description in its file; `version`: the policy's."""
    known = {*card.context, *card.candidate}
    features = {**CONTEXT_ENCODER.feature_types, **candidate_encoder(card.versions).feature_types}
    used = [name for name, type_ in features.items() if known & {*type_.columns(name)}]
    figures = card.held_out
    return ModelCard(
        name=card.name,
        kind="policy",
        version=version,
        digest=version,
        purpose=(
            "Ranks candidate tips by their expected reward for a user, and draws one of them: the higher its expected "
            "reward, the more often it is shown."
        ),
        inputs=tuple(feature_inputs()[name] for name in used),
        training=card.training,
        metrics=figures.metrics if figures else (),
        calibration=figures.calibration if figures else (),
        slices=figures.slices if figures else (),
        limits=(
            "It is a linear model of features and their interactions: other preferences are not learned.",
            "Of free text it knows the topics only.",
            f"It has learned from tips of {_names(card.versions)}; about another prompt version it knows nothing.",
            "Its figures are about the users and the time of its log, and about rewards only: what users react to is "
            "not always what helps them.",
        ),
        safety=SAFETY,
        licence=OPERATOR_LICENCE,
        contact=contact,
    )


def drift_metrics(figures: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Return the drift of a day as metrics of a policy's card. `figures`: see `ml.pipelines.drift`."""
    source = f"tips nightly, {figures['day']} (UTC)"
    n, features = figures["decisions"], figures["features"].values()
    values: dict[str, tuple[float | None, int]] = {
        "aggregates_different": (float(figures["equality"]["different"]), figures["equality"]["checked"]),
        "largest_psi": (max((each["psi"] for each in features), default=None), n),
        "largest_unseen_share": (max((each["unseen"] for each in features), default=None), n),
        "unknown_version_share": (figures["unknown_version_share"], n),
        "effective_share": (figures["effective_share"], n),
    }
    return tuple(
        Metric(name=name, value=value, n=count, source=source)
        for name, (value, count) in values.items()
        if value is not None
    )


def _names(versions: Sequence[str]) -> str:
    """Return the names of prompt versions; if there are many, of the first ones."""
    more = len(versions) - MAX_NAMES
    return ", ".join(versions[:MAX_NAMES]) + (f" and {more:,} more prompt versions" if more > 0 else "")
