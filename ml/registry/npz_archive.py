"""Archives of arrays (`.npz`) from untrusted sources: one encoding per content, read without unpickling.

Members are stored without compression, so the size of the archive limits the size of its arrays.
"""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_END_OF_DIRECTORY_BYTES = 22
_ZIP64_LOCATOR_BYTES = 20
_MAX_MEMBERS = 8
_MAX_DIRECTORY_BYTES = 1_024


def write_archive(arrays: Mapping[str, Array]) -> bytes:
    """Return an archive of little-endian arrays; equal arrays give equal bytes on every machine."""
    return _write_members({name: _write_array(array) for name, array in arrays.items()})


def member_names(archive: bytes) -> tuple[str, ...]:
    """Return the names of the members, in their order. Raises ValueError if this is no archive of a few members."""
    _check_directory(archive)
    with _open(archive) as opened:
        return tuple(opened.namelist())


def read_members(archive: bytes) -> dict[str, bytes]:
    """Return the members of an archive that `write_archive` wrote. Raises ValueError for any other bytes."""
    _check_directory(archive)
    with _open(archive) as opened:
        stored = all(
            member.compress_type == zipfile.ZIP_STORED and member.file_size <= len(archive)
            for member in opened.infolist()
        )
        if not stored:
            raise ValueError("members must not be compressed")
        try:
            members = {name: opened.read(name) for name in opened.namelist()}
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error) as error:
            raise ValueError("a member cannot be read") from error
    # So no byte is ignored, such as one before the archive or between two members.
    if _write_members(members) != archive:
        raise ValueError("the archive is not written as `write_archive` writes it")
    return members


def read_array(member: bytes, shape: tuple[int, ...], dtype: str) -> Array:
    """Return the array in a member. Raises ValueError unless it has this shape and this little-endian `dtype`.

    The header is compared with the expected one before numpy reads it, since numpy allocates what a header asks for.
    """
    header = _array_header(shape, dtype)
    if len(member) != len(header) + math.prod(shape) * np.dtype(dtype).itemsize or not member.startswith(header):
        raise ValueError(f"a member must be an array of the shape {shape} and the type {dtype}")
    array: Array = np.load(io.BytesIO(member), allow_pickle=False, max_header_size=len(header))
    return array


def read_byte_row(member: bytes) -> bytes:
    """Return the content of a one-dimensional array of bytes. Raises ValueError for anything else."""
    length = len(member) - len(_array_header((0,), "|u1"))  # headers are padded to the same length
    return read_array(member, (max(length, 0),), "|u1").tobytes()


def _open(archive: bytes) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(archive))
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError("there is no archive") from error


def _check_directory(archive: bytes) -> None:
    """Raise ValueError unless the bytes end with a small directory, since `zipfile` reads all of it on opening."""
    end = archive[-_END_OF_DIRECTORY_BYTES:]
    if len(end) < _END_OF_DIRECTORY_BYTES:
        raise ValueError("there is no archive")
    signature, _, _, _, members, directory_bytes, _, comment_bytes = struct.unpack("<4sHHHHLLH", end)
    if signature != b"PK\x05\x06" or members > _MAX_MEMBERS or directory_bytes > _MAX_DIRECTORY_BYTES or comment_bytes:
        raise ValueError("there is no archive of a few members")
    # A ZIP64 directory would replace this one.
    if archive[-_END_OF_DIRECTORY_BYTES - _ZIP64_LOCATOR_BYTES :].startswith(b"PK\x06\x07"):
        raise ValueError("the archive must not be in the ZIP64 format")


def _write_members(members: Mapping[str, bytes]) -> bytes:
    """Return an archive without compression, and with constant times, permissions and system."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            member.external_attr = 0o600 << 16
            archive.writestr(member, data)
    return content.getvalue()


def _write_array(array: Array) -> bytes:
    little_endian = array.dtype.newbyteorder("<")
    return _array_header(array.shape, little_endian.str) + array.astype(little_endian).tobytes()


def _array_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return the header of an `.npy` file in the format 1.0, with rows before columns."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    return content.getvalue()
