"""A tensor in a file: where it lies, or how it is computed when it is asked for."""

import math
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from gs_core.arrays import RawTensor, numpy_dtype
from gs_core.errors import CheckpointError
from gs_core.storage.regular import open_regular

CHUNK = 16 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: read all of it, or stream its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in pieces of ``CHUNK``. Raises ``CheckpointError`` when the file ends early or cannot be read."""
        with self.opened() as file:
            for start in range(0, self.nbytes, CHUNK):
                piece = memoryview(bytearray(min(CHUNK, self.nbytes - start)))
                self._fill(piece, file)
                yield piece

    def read(self) -> RawTensor:
        """The whole tensor in memory of its own; raises as ``chunks``."""
        data = np.empty(self.nbytes, np.uint8)
        self.read_into(data.data)
        return RawTensor(self.dtype, self.shape, data)

    def read_into(self, buffer: memoryview) -> None:
        """Its bytes, into as many of a buffer."""
        with self.opened() as file:
            self._fill(buffer, file)

    @contextmanager
    def opened(self) -> Iterator[FileIO]:
        """The file, where the bytes begin: whatever reads them goes through here."""
        try:
            with open_regular(self.path) as file:
                file.seek(self.offset)
                yield file
        except OSError as error:
            raise CheckpointError(f"{self.path}: {error.strerror or error}") from None

    def _fill(self, buffer: memoryview, file: FileIO) -> None:
        while buffer:
            got = file.readinto(buffer)
            if not got:
                raise CheckpointError(f"{self.path}: ended while reading '{self.name}'; copy the file again")
            buffer = buffer[got:]

    def map(self) -> RawTensor:
        """The tensor where it lies in the file, private: only rows that are looked at come into memory (``let_go``)."""
        data = np.memmap(self.path, np.uint8, "c", self.offset, (self.nbytes,))
        return RawTensor(self.dtype, self.shape, data)


def let_go(mapped: RawTensor) -> None:
    """Give back the memory of a mapped tensor's rows that were looked at, and of their neighbours, which the system
    brings along; they come again when they are looked at again. Nothing may have been written into it."""
    mapping = getattr(mapped.data, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class SplitTensor(StoredTensor):
    """A tensor whose bytes lie in several ``parts`` of a file, in order."""

    parts: tuple[StoredTensor, ...] = ()

    def chunks(self) -> Iterator[memoryview]:
        for part in self.parts:
            yield from part.chunks()

    def read_into(self, buffer: memoryview) -> None:
        for part in self.parts:
            part.read_into(buffer[: part.nbytes])
            buffer = buffer[part.nbytes :]

    def map(self) -> RawTensor:
        return self.read()


@dataclass(frozen=True)
class DerivedTensor:
    """A tensor that is computed when it is asked for: a dequantized weight among stored ones.

    ``slices`` gives the same bytes in pieces, for one too large to be made at once.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], RawTensor]
    slices: Callable[[], Iterator[RawTensor]] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize

    def chunks(self) -> Iterator[memoryview]:
        for raw in [self.read()] if self.slices is None else self.slices():
            yield raw.data.data

    def read(self) -> RawTensor:
        return self.make()

    def map(self) -> RawTensor:
        return self.make()
