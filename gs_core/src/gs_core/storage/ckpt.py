"""MindSpore's ``.ckpt`` files, read and written without MindSpore.

The format (MindSpore's ``checkpoint.proto``): a protobuf message, which is one ``Value`` after another, each a tag
(the parameter's name) and a tensor: dimensions, the name of a dtype, little-endian bytes. A tensor of more than
``SLICE`` bytes is several Values of one tag. ``crc_num`` and a checksum may follow. Since a message is a list of
fields, files put one behind the other are one file.
"""

import math
import os
from collections.abc import Iterable, Iterator
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gs_core.arrays import PACKED_INT4, RawTensor, numpy_dtype, to_raw
from gs_core.errors import CheckpointError, OutputError
from gs_core.storage.regular import open_regular
from gs_core.storage.tensors import DerivedTensor, SplitTensor, StoredTensor
from gs_core.storage.writer import Tensor, replacing

SLICE = 512 * 2**20
DTYPES = {
    "Bool": "bool", "Int8": "int8", "Int16": "int16", "Int32": "int32", "Int64": "int64",
    "UInt8": "uint8", "UInt16": "uint16", "UInt32": "uint32", "UInt64": "uint64",
    "Float16": "float16", "BFloat16": "bfloat16", "Float32": "float32", "Float64": "float64", "Int4": PACKED_INT4,
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}
_TEXT = "str"  # a word or number that was saved beside the parameters
_TRAILER = b"crc_num", 17
_ENCRYPTED = tuple(bytes([first, 0x5E, 0x3A, 0x7F]) for first in (0xD8, 0xD9, 0xDA))
_PICKLED = (b"PK\x03\x04", b"\x80")
_NAME_LIMIT = 2**16


class _Damaged(Exception):
    """Why the bytes are no checkpoint."""


# --- reading -------------------------------------------------------------------------------------------------


def read_ckpt(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, in file order; text that was saved beside them is left out. Reads no weights.

    Packed int4 has the dtype ``qint4x2`` and the shape of its bytes. Raises ``CheckpointError`` for a file that is
    encrypted, damaged, or none of MindSpore's.
    """
    try:
        with BufferedReader(open_regular(path)) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(4)
            if start in _ENCRYPTED:
                raise CheckpointError(f"{path}: encrypted; save it from MindSpore without enc_key")
            if start.startswith(_PICKLED):
                raise CheckpointError(f"{path}: a pickle, which is never loaded; save the model as safetensors")
            values = list(_values(file, _end(file, size)))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except _Damaged as damage:
        raise CheckpointError(f"{path}: not a MindSpore checkpoint, or damaged: {damage}") from None
    tensors: dict[str, StoredTensor] = {}
    for name, slices in groupby((value for value in values if value.dtype != _TEXT), lambda value: value.name):
        if name in tensors:
            raise CheckpointError(f"{path}: holds '{name:.100}' twice")
        tensors[name] = _tensor(path, list(slices))
    return tensors


class _Value(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Span(NamedTuple):
    start: int
    end: int


def _end(file: BinaryIO, size: int) -> int:
    """Where the message ends: at the end of the file, or before the checksum."""
    magic, length = _TRAILER
    file.seek(max(0, size - length))
    return size - length if file.read(len(magic)) == magic else size


def _values(file: BinaryIO, end: int) -> Iterator[_Value]:
    for _, value in _fields(file, _Span(0, end), {1}):
        name, content = "", None
        for number, field in _fields(file, value, {1, 2, 3}):
            if number == 3:
                raise _Damaged(f"'{name:.100}' is a map parameter, which is no tensor")
            if number == 1:
                name = _text(file, field)
            else:
                content = field
        if content is None:
            raise _Damaged(f"'{name:.100}' has no tensor")
        yield _content(file, name, content)


def _content(file: BinaryIO, name: str, span: _Span) -> _Value:
    dtype, shape, data = "", [], _Span(0, 0)
    for number, field in _fields(file, span, {1, 2, 3}, numbers=1):
        if number == 1:
            if field.start >= 1 << 63:
                raise _Damaged(f"'{name:.100}' has a negative size")
            shape.append(field.start)
        elif number == 2:
            dtype = _text(file, field)
        else:
            data = field
    return _Value(name, dtype, tuple(shape), data.start, data.end - data.start)


def _fields(file: BinaryIO, span: _Span, known: set[int], numbers: int = 0) -> Iterator[tuple[int, _Span]]:
    """The fields of the message in ``span``: their number, and where their bytes lie. Field ``numbers`` is a number
    instead, given as both ends of the span."""
    at = span.start
    while at < span.end:
        file.seek(at)
        key, value = _varint(file), _varint(file)
        at = file.tell()
        number, wire = key >> 3, key & 7
        if number not in known or wire != (0 if number == numbers else 2):
            raise _Damaged(f"byte {span.start} starts no field of a checkpoint")
        if number == numbers:
            yield number, _Span(value, value)
        else:
            if value > span.end - at:
                raise _Damaged(f"cut short at byte {span.end}, {at + value - span.end} bytes are missing")
            yield number, _Span(at, at + value)
            at += value


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise _Damaged("cut short inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _Damaged("a number has no end")


def _text(file: BinaryIO, span: _Span) -> str:
    if span.end - span.start > _NAME_LIMIT:
        raise _Damaged(f"a name of {span.end - span.start} bytes")
    file.seek(span.start)
    try:
        return file.read(span.end - span.start).decode()
    except UnicodeDecodeError:
        raise _Damaged("a name that is not UTF-8") from None


def _tensor(path: Path, slices: list[_Value]) -> StoredTensor:
    """One tensor of its slices, each of which repeats name, dtype and the whole shape."""
    name, dtype, shape, offset, _ = slices[0]
    if any((other.dtype, other.shape) != (dtype, shape) for other in slices):
        raise CheckpointError(f"{path}: the slices of '{name:.100}' differ in dtype or shape")
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: '{name:.100}' has the unknown dtype '{dtype:.40}'")
    nbytes = sum(part.nbytes for part in slices)
    if shape == (0,) and nbytes:
        shape = ()  # as older versions wrote a scalar
    dtype = DTYPES[dtype]
    if nbytes != math.prod(shape) * numpy_dtype(dtype).itemsize:
        raise CheckpointError(f"{path}: '{name:.100}' says shape {shape[:8]} {dtype} but holds {nbytes} bytes")
    if len(slices) == 1:
        return StoredTensor(name, dtype, shape, path, offset, nbytes)
    parts = tuple(StoredTensor(name, dtype, part.shape, path, part.offset, part.nbytes) for part in slices)
    return SplitTensor(name, dtype, shape, path, offset, nbytes, parts)


# --- writing -------------------------------------------------------------------------------------------------


def write_ckpt(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Write one file for ``mindspore.load_checkpoint``, in the given order, durably; returns ``{name: nbytes}``.

    What comes from another file streams through in pieces; nothing is held twice. Raises ``OutputError`` for a dtype
    that the format does not know (float8).
    """
    sizes: dict[str, int] = {}
    with replacing(path) as file:
        for name, given in tensors:
            tensor = given if isinstance(given, RawTensor | StoredTensor | DerivedTensor) else to_raw(given)
            if tensor.dtype not in _NAMES:
                raise OutputError(f"{path}: '{name}' is {tensor.dtype}, which .ckpt cannot hold; write safetensors")
            for piece in _sliced(name, tensor):
                file.write(piece)
            sizes[name] = tensor.nbytes
    return sizes


def _sliced(name: str, tensor: RawTensor | StoredTensor | DerivedTensor) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor's Values."""
    starts = range(0, tensor.nbytes, SLICE) or range(1)
    sizes = iter([min(SLICE, tensor.nbytes - start) for start in starts])
    left = next(sizes)
    yield _head(name, tensor, left)
    for chunk in [tensor.data.data] if isinstance(tensor, RawTensor) else tensor.chunks():
        rest = memoryview(chunk)
        while rest:
            if not left:
                left = next(sizes)
                yield _head(name, tensor, left)
            yield rest[:left]
            taken = min(left, len(rest))
            left, rest = left - taken, rest[taken:]


def _head(name: str, tensor: RawTensor | StoredTensor | DerivedTensor, nbytes: int) -> bytes:
    """Everything of a Value that stands before its bytes."""
    dims = b"".join(b"\x08" + _number(size) for size in tensor.shape)
    head = dims + _field(2, _NAMES[tensor.dtype].encode()) + b"\x1a" + _number(nbytes)
    tag = _field(1, name.encode())
    tensor_head = b"\x12" + _number(len(head) + nbytes) + head
    return b"\x0a" + _number(len(tag) + len(tensor_head) + nbytes) + tag + tensor_head


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _number(len(content)) + content


def _number(value: int) -> bytes:
    """A varint."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(found + bytes([value]))
