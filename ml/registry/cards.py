"""Model cards: one schema for prompt versions, ranking policies and language models.

Source: Mitchell et al., "Model cards for model reporting", FAT* 2019 (the sections).
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from ml.features.feature_types import FeatureType
from ml.features.free_text import remove_hidden_characters

UNIFORM = "uniform"
"""The name and the version of the policy without training."""

Kind = Literal["prompt", "policy", "model"]
SliceStatus = Literal["harmed", "not harmed", "unknown"]


def _one_line(value: object) -> object:
    """Return a text without hidden and control characters, on one line; any other value unchanged."""
    if not isinstance(value, str):
        return value
    visible = remove_hidden_characters(value)
    return " ".join("".join(each if each.isprintable() else " " for each in visible).split())


Line = Annotated[str, BeforeValidator(_one_line), Field(max_length=2_000)]
"""A text on one line."""
Name = Annotated[Line, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Digest = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]


class CardPart(BaseModel):
    """The base of cards and their parts: immutable, without coercion, unknown fields, NaN and infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_by_name=True, serialize_by_alias=True
    )


class CardInput(CardPart):
    """An input: its name, its JSON type, and the range of its values in words."""

    name: Name
    type: Name
    range: Line


class Training(CardPart):
    """The decisions that a policy was trained with: the times of the first and the last one, and their number.

    `dataset_sha256`: of these decisions (`ml.pipelines.day_statistics.dataset_digest`). `window_days`: the number of
    the last days whose decisions, `learned_from`, the model was fitted to; None for all. The others were needed to
    choose the window. `share`: of all decisions of the period, by a hash of their ids.
    """

    since: AwareDatetime = Field(alias="from")
    until: AwareDatetime = Field(alias="to")
    decisions: Annotated[Count, Field(ge=1)]
    learned_from: Annotated[Count, Field(ge=1)]
    dataset_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    window_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class Metric(CardPart):
    """A metric with its limits, if it has any, over `n` decisions or tips; `source`: what it was measured on."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    value: float
    low: float | None = None
    high: float | None = None
    n: Count
    source: Line


class CalibrationBin(CardPart):
    """The mean predicted and the mean observed reward of `n` decisions with similar predictions, with limits."""

    predicted: Annotated[float, Field(ge=0, le=1)]
    observed: Annotated[float, Field(ge=0, le=1)]
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]
    n: Count


class Slice(CardPart):
    """The difference of the mean reward for `n` decisions or tips of a segment, with limits for all slices at once.

    Of a policy from the log, or of live tips from those of the version that it is compared with.

    `value`, `low`, `high`: None if there are too few decisions.
    """

    name: Name
    n: Count
    value: float | None = None
    low: float | None = None
    high: float | None = None
    status: SliceStatus


class LiveFigures(CardPart):
    """Figures about real users, from the store at the time `at`; each metric names its source.

    `calibration`: of a policy, over decisions that it ranked in shadow. `slices`: compared with the champion, or of the
    champion, with the one before. `sources`: those of the calibration and of the slices, as sentences.
    """

    at: AwareDatetime
    metrics: tuple[Metric, ...] = ()
    calibration: tuple[CalibrationBin, ...] = ()
    slices: tuple[Slice, ...] = ()
    sources: tuple[Line, ...] = ()


class RolloutEntry(CardPart):
    """One event of the history of a version: who moved it from which stage to which, why, and to what share."""

    at: AwareDatetime
    actor: Line
    action: Name
    from_stage: Line | None = Field(default=None, alias="from")
    to_stage: Line | None = Field(default=None, alias="to")
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    reason: Line
    event: Count


class ModelCard(CardPart):
    """The description of a prompt version, a ranking policy or a language model.

    `version`: of a prompt, its name; of a policy, `uniform` or its version; of a model, its id. `digest`: the SHA-256
    of the content; of a policy, its version; None where the content is unknown. `licence`: an
    identifier such as apache-2.0, or a sentence. `contact`: whom to ask. `live`: None on a card that was not completed
    from the store. `rollouts`: the oldest first.
    """

    name: Name
    kind: Kind
    version: Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]{1,1000}$")]
    digest: Digest | None = None
    purpose: Line
    inputs: tuple[CardInput, ...] = ()
    training: Training | None = None
    metrics: tuple[Metric, ...] = ()
    calibration: tuple[CalibrationBin, ...] = ()
    slices: tuple[Slice, ...] = ()
    limits: tuple[Line, ...] = ()
    safety: tuple[Line, ...] = ()
    licence: Line = ""
    contact: Line | None = None
    live: LiveFigures | None = None
    rollouts: tuple[RolloutEntry, ...] = ()

    @property
    def file_name(self) -> str:
        """A name for a folder or a file that no other card has."""
        return f"{self.kind}-{quote(self.version, safe='')}"


_TRAIN = "run `tips train` on tips of more than 3 days"


def missing(card: ModelCard) -> tuple[str, ...]:
    """Name what a card lacks, each with what to do; empty if it is complete.

    A learned policy needs figures that `tips train` measures; prompt versions, models and the uniform policy do not.
    """
    lacking = {
        "purpose": not card.purpose,
        "inputs": not card.inputs,
        "limits": not card.limits,
        "safety": not card.safety,
        "licence": not card.licence,
        "contact: set CARD_CONTACT": not card.contact,
    }
    if card.kind == "policy" and card.version != UNIFORM:
        lacking |= {
            f"training: {_TRAIN}": card.training is None,
            f"metrics: {_TRAIN}": not card.metrics,
            f"calibration: {_TRAIN}": not card.calibration,
            f"slices: {_TRAIN}": not card.slices,
        }
    return tuple(name for name, is_lacking in lacking.items() if is_lacking)


def find_card(cards: Iterable[ModelCard], name: str) -> ModelCard | None:
    """Return the card with this version; otherwise the only one with this name; None if there is no such card."""
    by_version = [card for card in cards if card.version == name]
    found = by_version or [card for card in cards if card.name == name]
    return found[0] if len(found) == 1 else None


def describe_inputs(feature_types: Mapping[str, FeatureType]) -> tuple[CardInput, ...]:
    """Return features as inputs, with their types and ranges from the JSON schemas of their values."""
    schemas = {name: TypeAdapter(type_.annotation).json_schema() for name, type_ in feature_types.items()}
    return tuple(CardInput(name=name, type=schema["type"], range=_range(schema)) for name, schema in schemas.items())


def _range(schema: Mapping[str, Any]) -> str:
    """Return the values that a JSON schema allows, in words."""
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "items" in schema:
        return f"at most {schema['maxItems']:,}, each {_range(schema['items'])}"
    if "minimum" in schema:
        unit = f" ({schema['x-unit']})" if "x-unit" in schema else ""
        return f"{schema['minimum']:,} to {schema['maximum']:,}{unit}"
    pattern = f", matching {schema['pattern']}" if "pattern" in schema else ""
    return f"at most {schema['maxLength']:,} characters{pattern}"
