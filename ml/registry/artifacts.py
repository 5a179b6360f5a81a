"""Ranking policies as files: one `.npz` archive with the model's arrays and a card that says what it was made for.

A file comes from wherever an operator got it, so nothing in it is trusted: nothing is unpickled or executed, sizes are
checked before anything is allocated, and every number before it is used. Members are stored without compression, so the
file bounds what they can hold. Of each policy there is exactly one file: an archive that differs in any byte from what
`to_bytes` would write for its members is refused.
"""

import hashlib
import io
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ml.experiments.arrays import Floats
from ml.experiments.exploration import Ranking, SquareCB
from ml.experiments.linear import MAX_ROWS, LinearModel

RESERVED_NAMES = frozenset({"uniform", "unavailable"})
"""Names that decisions carry which no learned policy made."""

MAX_FEATURES = 4_096
"""Weights of a model."""
MAX_CARD_BYTES = 256 * 1024
MAX_BYTES = 4 * MAX_FEATURES * (MAX_FEATURES + 1) + MAX_CARD_BYTES + 64 * 1024
"""Of a file: the covariance of `MAX_FEATURES` weights, the card, and what is small."""
MAX_MAGNITUDE = 1e6
"""Of any number in a model: rewards and features are at most 1."""

_CARD, _WEIGHTS, _COVARIANCE, _NOISE = "card.npy", "weights.npy", "covariance.npy", "noise_variance.npy"
_MEMBERS = (_CARD, _WEIGHTS, _COVARIANCE, _NOISE)
_EARLIER_MEMBERS = {"card.json", "model.vw"}
"""The members of a file of earlier releases, whose model was Vowpal Wabbit's."""
_END_OF_ARCHIVE = struct.Struct("<4sHHHHLLH")
_MAX_DIRECTORY_BYTES = 1_024
_ARRAY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f8|\|u1)', 'fortran_order': False, "
    rb"'shape': \(([0-9]{0,9}(?:, ?[0-9]{0,9})?)\), \} *\n",
    re.DOTALL,
)

_DAMAGED = "is damaged, or is not a policy"
EARLIER_RELEASE = "was written by an earlier release; train it again"

Array = npt.NDArray[Any]
Column = Annotated[str, Field(pattern=r"^[!-~]{1,100}$")]


def _not_reserved(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"no learned policy may be called {name}")
    return name


class UnusablePolicyError(Exception):
    """A policy that cannot be loaded or used; the message is the end of a sentence."""


class PolicyCard(BaseModel):
    """Description of a policy, and what it was made for.

    `context`, `candidate`: the columns that it knows, by name. `versions`: the prompt versions among them.
    `learned_from`: the number of decisions. `trained_until`: when the last of them was, in Unix seconds.
    `gamma_scale`, `floor`: how much it explores, see `SquareCB`; gamma grows with the root of `learned_from`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"), AfterValidator(_not_reserved)]
    context: Annotated[tuple[Column, ...], Field(strict=False, max_length=MAX_FEATURES)]
    candidate: Annotated[tuple[Column, ...], Field(strict=False, min_length=1, max_length=MAX_FEATURES)]
    versions: Annotated[tuple[Column, ...], Field(strict=False, max_length=MAX_FEATURES)]
    learned_from: Annotated[int, Field(ge=1, le=MAX_ROWS)]
    # The years 1 to 9999, as `datetime` has them.
    trained_until: Annotated[float, Field(ge=-62_135_596_800, le=253_402_300_799, allow_inf_nan=False)]
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
        """The rule that makes probabilities of scores."""
        return SquareCB(self.gamma_scale * math.sqrt(self.learned_from), self.floor)


class RankingPolicy:
    """A learned policy; immutable, and safe to use from several threads."""

    def __init__(self, card: PolicyCard, model: LinearModel) -> None:
        """Raises ValueError if the model has other columns than the card, or numbers that no model can have."""
        if model.weights.shape != card.shape:
            raise ValueError(f"the weights must have the shape {card.shape}, not {model.weights.shape}")
        if max(abs(model.weights).max(), abs(model.covariance).max(), model.noise_variance) > MAX_MAGNITUDE:
            raise ValueError(f"the numbers of a model must be at most {MAX_MAGNITUDE:g}")
        self.card = card
        self.model = model
        self._exploration = card.exploration

    @cached_property
    def version(self) -> str:
        """The beginning of the SHA-256 of its bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:12]

    def rank(self, context: Floats, candidates: Floats) -> Ranking:
        """Rank n >= 1 candidates: `context` of shape (k,), `candidates` of shape (n, m), by the card's columns.

        NaN is missing. Raises ValueError for another shape.
        """
        scores = np.minimum(np.maximum(self.model.predict(context, candidates), 0.0), 1.0)
        return Ranking(scores, self._exploration.distribution(scores))

    def to_bytes(self) -> bytes:
        """Return the policy as a file: the same policy gives the same bytes."""
        lower = np.tril_indices(self.model.weights.size)
        arrays: dict[str, Array] = {
            _CARD: np.frombuffer(self.card.model_dump_json(indent=1).encode(), np.uint8),
            _WEIGHTS: self.model.weights,
            _COVARIANCE: self.model.covariance[lower],
            _NOISE: np.array(self.model.noise_variance),
        }
        return _archive({name: _array_bytes(array) for name, array in arrays.items()})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Load a policy from the bytes of a file. Raises UnusablePolicyError for anything else."""
        if len(blob) > MAX_BYTES:
            raise UnusablePolicyError("is larger than a policy can be")
        try:
            arrays = _read_arrays(blob)
            policy = cls(*_card_and_model(arrays))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, ValueError):
            raise UnusablePolicyError(_DAMAGED) from None
        policy.__dict__["version"] = hashlib.sha256(blob).hexdigest()[:12]
        return policy


def read_artifact(path: str) -> bytes:
    """Return the content of a policy's file; raises UnusablePolicyError if it is not a regular file, or too large."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError):
        raise UnusablePolicyError("is not a file that can be read") from None
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise UnusablePolicyError("is a directory, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise UnusablePolicyError("is not a regular file")
        if found.st_size > MAX_BYTES:
            raise UnusablePolicyError("is larger than a policy can be")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    except OSError:
        raise UnusablePolicyError("is not a file that can be read") from None
    finally:
        os.close(descriptor)


def _card_and_model(arrays: Mapping[str, Array]) -> tuple[PolicyCard, LinearModel]:
    """Raise ValueError if an array has another shape or type than the card says, or numbers that no model can have."""
    if arrays[_CARD].ndim != 1 or arrays[_CARD].dtype != np.uint8:
        raise ValueError("the card must be a row of bytes")
    card = PolicyCard.model_validate_json(arrays[_CARD].tobytes())
    d = card.shape[0] * card.shape[1]
    for name, shape in ((_WEIGHTS, card.shape), (_COVARIANCE, (d * (d + 1) // 2,)), (_NOISE, ())):
        if arrays[name].shape != shape or arrays[name].dtype != np.float64:
            raise ValueError(f"{name} must be numbers of the shape {shape}")
        # Written so that NaN fails.
        if not (abs(arrays[name]) <= MAX_MAGNITUDE).all():
            raise ValueError(f"{name} must be numbers of at most {MAX_MAGNITUDE:g}")
    covariance = np.zeros((d, d))
    covariance[np.tril_indices(d)] = covariance.T[np.tril_indices(d)] = arrays[_COVARIANCE]
    variances = covariance.diagonal()
    # Of any two weights, by the Cauchy-Schwarz inequality.
    if (variances < 0).any() or (covariance**2 > np.outer(variances, variances) * (1 + 1e-6) + 1e-12).any():
        raise ValueError("the covariance is that of no weights")
    return card, LinearModel(arrays[_WEIGHTS], covariance, float(arrays[_NOISE]))


def _read_arrays(blob: bytes) -> dict[str, Array]:
    """Return the arrays of an archive. Raises ValueError, or what `zipfile` raises, for one that is not a policy's."""
    _check_directory(blob)
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        names = archive.namelist()
        if {*names} == _EARLIER_MEMBERS:
            raise UnusablePolicyError(EARLIER_RELEASE)
        if names != [*_MEMBERS] or any(
            member.compress_type != zipfile.ZIP_STORED or member.file_size > len(blob) for member in archive.infolist()
        ):
            raise ValueError("the members must be those of a policy, without compression")
        members = {name: archive.read(name) for name in names}
    if _archive(members) != blob:
        raise ValueError("the archive must be written as `to_bytes` writes it")
    for member in members.values():
        _check_array(member)
    if len(members[_CARD]) > MAX_CARD_BYTES:
        raise ValueError(f"the card must have at most {MAX_CARD_BYTES:,} bytes")
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return {name: arrays[name.removesuffix(".npy")] for name in _MEMBERS}


def _check_directory(blob: bytes) -> None:
    """Raise ValueError unless the bytes end with the directory of a small archive, which is quick to read."""
    if len(blob) < _END_OF_ARCHIVE.size:
        raise ValueError("there is no archive")
    signature, _, _, _, members, size, _, comment = _END_OF_ARCHIVE.unpack(blob[-_END_OF_ARCHIVE.size :])
    if signature != b"PK\x05\x06" or members > len(_MEMBERS) or size > _MAX_DIRECTORY_BYTES or comment:
        raise ValueError("there is no archive of a few members")


def _check_array(member: bytes) -> None:
    """Raise ValueError unless a member is an array of numbers of the size that its header says.

    Before numpy reads it, which allocates what the header asks for.
    """
    header = _ARRAY.match(member)
    if not header:
        raise ValueError("a member must be an array")
    shape = [int(side) for side in header[2].split(b",") if side.strip()]
    if math.prod(shape) * (8 if header[1] == b"<f8" else 1) != len(member) - header.end():
        raise ValueError("a member must be as large as its header says")


def _array_bytes(array: Array) -> bytes:
    """Return an array as the content of an `.npy` file, little-endian on every machine."""
    content = io.BytesIO()
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
    np.lib.format.write_array(content, little, version=(1, 0), allow_pickle=False)
    return content.getvalue()


def _archive(members: dict[str, bytes]) -> bytes:
    """Return an archive of these members: no compression, and no time or system of its making in it."""
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            member.external_attr = 0o600 << 16
            archive.writestr(member, content)
    return blob.getvalue()
