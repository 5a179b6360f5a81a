"""Ranking policies as files: one `.npz` archive with the arrays of the model and a card that describes it.

A file can come from an untrusted source. Nothing in it is unpickled or executed, sizes are checked before memory is
allocated, and every number is checked before it is used (`npz_archive`, `PolicyCard`, `RankingPolicy`).
"""

import hashlib
import math
import os
import re
import stat
import time
from functools import cached_property
from typing import Annotated, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ml.experiments.arrays import Floats
from ml.experiments.exploration import Ranking, SquareCB
from ml.experiments.linear import LinearModel
from ml.experiments.regression_statistics import MAX_ROWS
from ml.registry.cards import CalibrationBin, Metric, Slice, Training
from ml.registry.npz_archive import member_names, read_array, read_byte_row, read_members, write_archive

RESERVED_NAMES = frozenset({"uniform", "unavailable"})
"""Policy names in the decision log that no learned policy may have."""

MAX_FEATURES = 4_096
"""The maximum number of weights of a model."""
MAX_SLICES = 200
"""The maximum number of slices on a card."""
MAX_CARD_BYTES = 256 * 1024
MAX_BYTES = 4 * MAX_FEATURES * (MAX_FEATURES + 1) + MAX_CARD_BYTES + 64 * 1024
"""The maximum size of a file: the covariance of `MAX_FEATURES` weights, the card, and the small members."""
SETTLED_SECONDS = 2.0
"""The age of a file from which its time of modification identifies its content; file systems' clocks are coarser."""
MAX_MAGNITUDE = 1e6
"""The maximum absolute value of a number in a model. Rewards and features are at most 1."""

_CARD, _WEIGHTS, _COVARIANCE, _NOISE = "card.npy", "weights.npy", "covariance.npy", "noise_variance.npy"
_MEMBERS = (_CARD, _WEIGHTS, _COVARIANCE, _NOISE)
_EARLIER_MEMBERS = {"card.json", "model.vw"}
"""The members of a file of earlier releases, whose models were Vowpal Wabbit's."""

EARLIER_RELEASE = "was written by an earlier release; train it again"
_DAMAGED = "is damaged, or is not a policy"
_UNREADABLE = "is not a file that can be read"
TOO_LARGE = "is larger than a policy can be"

Column = Annotated[str, Field(pattern=r"^[!-~]{1,100}$")]


class UnusablePolicyError(Exception):
    """A policy that cannot be loaded or used; the message is the end of a sentence that begins with "the policy"."""


class AbsentPolicyError(UnusablePolicyError):
    """A registered model or its alias does not exist, or not yet."""


class AbsentRegistryError(UnusablePolicyError):
    """The file of MLflow's registry does not exist, or not yet."""


def check_policy_name(name: str) -> str:
    """Return the name of a learned policy unchanged; raise ValueError for one that it cannot have."""
    if name in RESERVED_NAMES or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError("should be letters, digits, dots, dashes and underscores, and not uniform or unavailable")
    return name


class WindowError(BaseModel):
    """How well a policy that was fitted to the last days before the newest ones predicted these.

    `days`: the length of the window; None for all days. `error`: the mean squared error of contrasts within days.
    `deviation`: the standard deviation of its difference from that of all days.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    days: Annotated[int, Field(ge=1, le=36_500)] | None
    error: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    deviation: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class HeldOutFigures(BaseModel):
    """Figures of the policy that the same training gives on the days before the newest ones, on these newest days.

    All are about `decisions` decisions. Source of each: `ml.pipelines.held_out`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    decisions: Annotated[int, Field(ge=1, le=MAX_ROWS)]
    metrics: Annotated[tuple[Metric, ...], Field(strict=False, max_length=50)]
    calibration: Annotated[tuple[CalibrationBin, ...], Field(strict=False, max_length=50)]
    slices: Annotated[tuple[Slice, ...], Field(strict=False, max_length=MAX_SLICES)]


class PolicyCard(BaseModel):
    """The description of a learned policy.

    `context`, `candidate`: the columns that it was trained with, by name. `versions`: the prompt versions among them.
    `learned_from`: the number of decisions. `trained_until`: the time of the last one, in Unix seconds. `window_days`:
    the number of days before it that the policy was trained on; None for all. `window_errors`: of the windows that were
    compared. `training`: the decisions it was trained with. `held_out`: its figures; None if there were too few days.
    Neither is in files of earlier releases. `gamma_scale`, `floor`: the parameters of `SquareCB`, whose gamma is
    `gamma_scale` times the root of `learned_from`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, AfterValidator(check_policy_name)]
    context: Annotated[tuple[Column, ...], Field(strict=False, max_length=MAX_FEATURES)]
    candidate: Annotated[tuple[Column, ...], Field(strict=False, min_length=1, max_length=MAX_FEATURES)]
    versions: Annotated[tuple[Column, ...], Field(strict=False, max_length=MAX_FEATURES)]
    learned_from: Annotated[int, Field(ge=1, le=MAX_ROWS)]
    # The years 1 to 9999, the range of `datetime`.
    trained_until: Annotated[float, Field(ge=-62_135_596_800, le=253_402_300_799, allow_inf_nan=False)]
    window_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    window_errors: Annotated[tuple[WindowError, ...], Field(strict=False, max_length=10)] = ()
    training: Training | None = None
    held_out: HeldOutFigures | None = None
    gamma_scale: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] = 10.0
    floor: Annotated[float, Field(ge=1e-6, le=0.999, allow_inf_nan=False)] = 0.02

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        for columns in (self.context, self.candidate, self.versions):
            if len({*columns}) < len(columns):
                raise ValueError("columns must have different names")
        if self.shape[0] * self.shape[1] > MAX_FEATURES:
            raise ValueError(f"a policy can have at most {MAX_FEATURES:,} features")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the model's weights."""
        return 1 + len(self.context), 1 + len(self.candidate)

    @property
    def exploration(self) -> SquareCB:
        """The rule that turns scores into probabilities."""
        return SquareCB(self.gamma_scale * math.sqrt(self.learned_from), self.floor)


class RankingPolicy:
    """A learned policy; immutable, and safe to use from several threads."""

    def __init__(self, card: PolicyCard, model: LinearModel) -> None:
        """Raises ValueError if the shape of the model differs from the card, or if a number is out of range."""
        if model.weights.shape != card.shape:
            raise ValueError(f"the weights must have the shape {card.shape}, not {model.weights.shape}")
        _check_numbers(model)
        self.card = card
        self.model = model
        self._exploration = card.exploration

    @cached_property
    def version(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the file."""
        return _version(self.to_bytes())

    def rank(self, context: Floats, candidates: Floats) -> Ranking:
        """Rank n >= 1 candidates: `context` of shape (k,), `candidates` of shape (n, m), with the card's columns.

        NaN is missing. Raises ValueError for another shape.
        """
        scores = np.minimum(np.maximum(self.model.predict(context, candidates), 0.0), 1.0)
        return Ranking(scores, self._exploration.distribution(scores))

    def rank_each(self, contexts: Floats, candidates: Floats) -> tuple[Floats, Floats]:
        """Return the scores and the probabilities of `rank` for each of n contexts with j candidates each, (n, j) both.

        They are equal to the last bit. `contexts`: shape (n, k). `candidates`: shape (n, j, m), j >= 1.
        """
        scores = np.minimum(np.maximum(self.model.predict_each(contexts, candidates), 0.0), 1.0)
        return scores, self._exploration.distributions(scores)

    def to_bytes(self) -> bytes:
        """Return the content of the policy's file; the same policy gives the same bytes."""
        lower_triangle = np.tril_indices(self.model.weights.size)
        return write_archive(
            {
                _CARD: np.frombuffer(self.card.model_dump_json(indent=1).encode(), np.uint8),
                _WEIGHTS: self.model.weights,
                _COVARIANCE: self.model.covariance[lower_triangle],
                _NOISE: np.array(self.model.noise_variance),
            }
        )

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Load a policy from the content of its file; the largest takes 0.3 GB for a second.

        Raises UnusablePolicyError for any other bytes, and if there is not enough memory.
        """
        if len(blob) > MAX_BYTES:
            raise UnusablePolicyError(TOO_LARGE)
        try:
            policy = cls(*_read_card_and_model(blob))
        except ValueError:
            raise UnusablePolicyError(_DAMAGED) from None
        except MemoryError:
            raise UnusablePolicyError("needs more memory than there is") from None
        policy.__dict__["version"] = _version(blob)  # the cached property
        return policy


def _version(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()[:12]


def _check_numbers(model: LinearModel) -> None:
    """Raise ValueError for numbers that no fitted model has."""
    if max(abs(model.weights).max(), model.noise_variance) > MAX_MAGNITUDE:
        raise ValueError(f"the numbers of a model must be at most {MAX_MAGNITUDE:g}")
    variances = model.covariance.diagonal()
    # By row: the largest covariance takes 134 MB, and each array of its size as much.
    for variance, row in zip(variances, model.covariance, strict=True):
        if abs(row).max() > MAX_MAGNITUDE:
            raise ValueError(f"the numbers of a model must be at most {MAX_MAGNITUDE:g}")
        # The Cauchy-Schwarz inequality for each pair of weights.
        if (row**2 > variance * variances * (1 + 1e-6) + 1e-12).any():
            raise ValueError("a covariance must be at most the root of the product of its variances")


def _read_card_and_model(blob: bytes) -> tuple[PolicyCard, LinearModel]:
    """Raise ValueError, or UnusablePolicyError for a file of an earlier release, if the bytes are not a policy."""
    names = member_names(blob)
    if {*names} == _EARLIER_MEMBERS:
        raise UnusablePolicyError(EARLIER_RELEASE)
    if names != _MEMBERS:
        raise ValueError("the members must be those of a policy")
    members = read_members(blob)
    if len(members[_CARD]) > MAX_CARD_BYTES:
        raise ValueError(f"the card must have at most {MAX_CARD_BYTES:,} bytes")
    card = PolicyCard.model_validate_json(read_byte_row(members[_CARD]))
    d = card.shape[0] * card.shape[1]
    lower_triangle = read_array(members[_COVARIANCE], (d * (d + 1) // 2,), "<f8")
    covariance = np.empty((d, d))
    for index in range(d):
        row = lower_triangle[index * (index + 1) // 2 :][: index + 1]
        covariance[index, : index + 1] = covariance[: index + 1, index] = row
    weights = read_array(members[_WEIGHTS], card.shape, "<f8")
    noise_variance = float(read_array(members[_NOISE], (), "<f8"))
    return card, LinearModel(weights, covariance, noise_variance)


def artifact_revision(path: str) -> str | None:
    """Return a text that changes when the file is written or replaced; None if it may just be being written.

    Raises UnusablePolicyError if there is no such file.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - Path refuses some of the names that `read_artifact` reports
    except (OSError, ValueError):
        raise UnusablePolicyError(_UNREADABLE) from None
    # Two writes within one tick of the file system's clock have the same time: a recent one does not tell them apart.
    if time.time() - status.st_mtime < SETTLED_SECONDS:
        return None
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


def read_artifact(path: str) -> bytes:
    """Return the content of a policy's file. Raises UnusablePolicyError if it is not a regular file, or too large."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError):
        raise UnusablePolicyError(_UNREADABLE) from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise UnusablePolicyError("is a directory, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise UnusablePolicyError("is not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnusablePolicyError(TOO_LARGE)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    except OSError:
        raise UnusablePolicyError(_UNREADABLE) from None
    finally:
        os.close(descriptor)
