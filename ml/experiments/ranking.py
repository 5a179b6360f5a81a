"""Ranks candidates for a context by the reward that is to be expected of each, as learned from decisions.

The model is Vowpal Wabbit's for action-dependent features (`cb_adf`): a linear regression of the reward on the
context's features, the candidate's, and each of the one times each of the other. It is fitted on the candidates that
were shown, without weights: that is what inverse gap weighting (`exploration.SquareCB`), which makes probabilities of
its predictions, asks for (Foster & Rakhlin 2020), and predictions fitted with weights would be no expected rewards.

A policy is a ZIP archive of `card.json`, which says what it was made for, and of `model.vw`. The archive's checksums
tell a damaged one, which Vowpal Wabbit itself may not; nothing in it is ever unpickled.
"""

import hashlib
import io
import math
import re
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ml.experiments.arrays import Floats
from ml.experiments.exploration import Ranking, SquareCB

if TYPE_CHECKING:
    from vowpalwabbit import Workspace

_OPTIONS = "--cb_adf --cb_type mtr --interactions ca --hash all --bit_precision 18 --quiet"
_COLUMN = re.compile(r"(?=.*[^0-9\s:|])[^\s:|]{1,100}")
"""A name that is one feature to Vowpal Wabbit: no namespace, weight or line of its own, and not only digits."""

_CARD, _MODEL = "card.json", "model.vw"
_SMALLEST, _GREATEST = 1e-6, 1e6
"""Features outside are nothing, or refused: single precision would lose them, and some it would read as no number."""
_LARGEST = 64 * 1024 * 1024
"""Bytes that a part of a policy may have."""

Column = Annotated[str, Field(pattern=r"^[^\s:|]{1,100}$")]


RESERVED_NAMES = frozenset({"uniform", "unavailable"})
"""What decisions are said to be made by that no learned policy made."""


def _own_name(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"no learned policy may be called {name}")
    return name


class UnusablePolicyError(Exception):
    """What should be a policy is none, or not one for us; the message says it as the end of a sentence."""


class Card(BaseModel):
    """What a policy is, and what it was made for.

    `context`, `candidate`: the columns that it knows, by name. `versions`: the prompt versions among them.
    `learned_from`: the number of decisions. `trained_until`: when the last of them was, in Unix seconds.
    `gamma_scale`, `floor`: how boldly it chooses, see `SquareCB`; gamma grows with the root of `learned_from`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"), AfterValidator(_own_name)]
    context: Annotated[tuple[Column, ...], Field(strict=False)]
    candidate: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)]
    versions: Annotated[tuple[str, ...], Field(strict=False)]
    learned_from: Annotated[int, Field(ge=0)]
    trained_until: Annotated[float, Field(allow_inf_nan=False)]
    gamma_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    floor: Annotated[float, Field(gt=0, lt=1)] = 0.02

    @property
    def exploration(self) -> SquareCB:
        """How scores become probabilities."""
        return SquareCB(self.gamma_scale * math.sqrt(max(self.learned_from, 1)), self.floor)


class Encoder:
    """Puts numbers into Vowpal Wabbit's text, for training and choosing alike: only declared names, only numbers."""

    def __init__(self, context: Sequence[str], candidate: Sequence[str]) -> None:
        """Take the names of the columns. Raises ValueError for one that would not stay one feature."""
        bad = [name for name in (*context, *candidate) if not _COLUMN.fullmatch(name)]
        if bad:
            raise ValueError(f"columns cannot be called {', '.join(map(repr, bad))}")
        self.context, self.candidate = tuple(context), tuple(candidate)

    def encode(self, context: Floats, candidates: Floats) -> list[str]:
        """Return the lines of an example: one for the context, then one for each candidate.

        `context`: shape (number of context columns,). `candidates`: shape (n, number of candidate columns). NaN is
        missing, and below a millionth it is nothing; raises ValueError above a million and for another shape.
        """
        _check(context, candidates, len(self.context), len(self.candidate))
        return [
            "shared |c " + _features(self.context, context.tolist()),
            *("|a " + _features(self.candidate, row) for row in candidates.tolist()),
        ]


def _check(context: Floats, candidates: Floats, of_context: int, of_candidate: int) -> None:
    """Raise ValueError unless there are as many columns of each, with numbers that single precision can hold."""
    if context.shape != (of_context,) or candidates.shape[1:] != (of_candidate,):
        raise ValueError(f"columns are missing: {context.shape} and {candidates.shape}")
    if (abs(context) > _GREATEST).any() or (abs(candidates) > _GREATEST).any():
        raise ValueError(f"features must be at most {_GREATEST:,.0f}")


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A model as what it is: linear in the context, in the candidate, and in each of the one times each of the other.

    `context`: shape (number of context columns,). `candidate`: shape (number of candidate columns,). `both`: shape
    (number of context columns, number of candidate columns).
    """

    constant: float
    context: Floats
    candidate: Floats
    both: Floats

    @classmethod
    def of(cls, model: "Workspace", encoder: "Encoder") -> Self:
        """Take it from what the model predicts for each column alone, and for each two together."""
        k, m = len(encoder.context), len(encoder.candidate)
        alone = np.vstack((np.zeros(m), np.eye(m)))
        constant, *of_candidate = _predict(model, encoder.encode(np.zeros(k), alone))
        candidate = np.array(of_candidate) - constant
        of_both = np.array([_predict(model, encoder.encode(one, alone)) for one in np.eye(k)]).reshape(k, m + 1)
        context = of_both[:, 0] - constant
        return cls(float(constant), context, candidate, of_both[:, 1:] - context[:, None] - candidate - constant)

    def predict(self, context: Floats, candidates: Floats) -> Floats:
        """Return the predicted reward of each candidate, shape (n,): what the model would, and much sooner."""
        context, candidates = np.where(np.isnan(context), 0, context), np.where(np.isnan(candidates), 0, candidates)
        rewards: Floats = self.constant + context @ self.context + candidates @ (self.candidate + context @ self.both)
        return rewards


class RankingPolicy:
    """A learned policy; it never learns any more, and ranking is safe from several threads."""

    def __init__(self, card: Card, model: Linear, version: str) -> None:
        self.card = card
        self.version = version
        self._exploration = card.exploration
        self._model = model

    @classmethod
    def load(cls, blob: bytes) -> Self:
        """Load a policy; its version is the beginning of the SHA-256 of its bytes. Raises UnusablePolicyError."""
        try:
            with zipfile.ZipFile(io.BytesIO(blob)) as archive:
                if any(part.file_size > _LARGEST for part in archive.infolist()):
                    raise UnusablePolicyError("is larger than a policy can be")
                card, model = Card.model_validate_json(archive.read(_CARD)), archive.read(_MODEL)
            linear = Linear.of(_loaded(model), Encoder(card.context, card.candidate))
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError, ValueError):
            raise UnusablePolicyError("is damaged, or is no policy") from None
        return cls(card, linear, hashlib.sha256(blob).hexdigest()[:12])

    def rank(self, context: Floats, candidates: Floats) -> Ranking:
        """Rank n >= 1 candidates: `context` of shape (number of context columns,), `candidates` with n rows.

        Raises what `Encoder.encode` raises.
        """
        _check(context, candidates, len(self.card.context), len(self.card.candidate))
        scores = np.clip(self._model.predict(context, candidates), 0.0, 1.0)
        return Ranking(scores, self._exploration.distribution(scores))


class Learner:
    """Learns from what was shown, one by one; the same ones in the same order give the same model, byte by byte."""

    def __init__(self, context: Sequence[str], candidate: Sequence[str]) -> None:
        self._encoder = Encoder(context, candidate)
        self._model = _workspace(_OPTIONS)

    def learn(self, context: Floats, candidate: Floats, reward: float) -> None:
        """Learn that a candidate, shape (number of candidate columns,), earned `reward`, in [0, 1], in a context.

        Raises ValueError for another reward, and what `Encoder.encode` raises.
        """
        if not 0 <= reward <= 1:
            raise ValueError("a reward must be in [0, 1]")
        shared, shown = self._encoder.encode(context, candidate[None, :])
        self._model.learn([shared, f"0:{-reward:.6f}:1 {shown}"])

    def scores(self, context: Floats, candidates: Floats) -> Floats:
        """Return the expected reward of each candidate by what was learned so far, shape (n,), in [0, 1]."""
        return np.clip(_predict(self._model, self._encoder.encode(context, candidates)), 0.0, 1.0)

    def policy(self, name: str, *, versions: Sequence[str], learned_from: int, trained_until: float) -> bytes:
        """Return what was learned so far as a policy, to be kept in a file or a registry."""
        card = Card(
            name=name,
            context=self._encoder.context,
            candidate=self._encoder.candidate,
            versions=tuple(versions),
            learned_from=learned_from,
            trained_until=trained_until,
        )
        with tempfile.TemporaryDirectory() as directory:
            self._model.save(f"{directory}/{_MODEL}")
            model = Path(directory, _MODEL).read_bytes()
        blob = io.BytesIO()
        with zipfile.ZipFile(blob, "w", zipfile.ZIP_DEFLATED) as archive:
            for part, content in ((_CARD, card.model_dump_json(indent=1).encode()), (_MODEL, model)):
                # No time in it: the same model is the same version.
                archive.writestr(zipfile.ZipInfo(part, (1980, 1, 1, 0, 0, 0)), content)
        return blob.getvalue()


def _features(names: Sequence[str], numbers: Sequence[float]) -> str:
    """The features that are there (NaN compares as false) and that say something; without a number, it is 1."""
    said = [
        name if number == 1 else f"{name}:{number:.6g}"
        for name, number in zip(names, numbers, strict=True)
        if abs(number) >= _SMALLEST
    ]
    return " ".join(said)


def _predict(model: "Workspace", lines: Sequence[str]) -> Floats:
    """Return the predicted reward of each candidate, the negative cost; a regression may leave [0, 1]."""
    costs = np.asarray(model.predict([*lines]), np.float64)
    if costs.shape != (len(lines) - 1,):
        raise ValueError("the model does not see each candidate as one")
    if not np.isfinite(costs).all():
        raise ValueError("the model predicts no number")
    return -costs


def _loaded(model: bytes) -> "Workspace":
    """Load a model; Vowpal Wabbit reads it from a file only."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, _MODEL).write_bytes(model)
        return _workspace(f"{_OPTIONS} --testonly --initial_regressor {directory}/{_MODEL}")


def _workspace(options: str) -> "Workspace":
    try:
        from vowpalwabbit import Workspace  # an extra: whoever has no policy goes without
    except ModuleNotFoundError:
        raise UnusablePolicyError("needs the `ranking` extra") from None
    return Workspace(options)
