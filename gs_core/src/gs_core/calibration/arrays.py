"""Token ids from arrays, tensors and .npy files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gs_core.calibration.files import opened
from gs_core.errors import CalibrationError, reason

MAX_HEADER_BYTES = 10_000
"""Bytes of a .npy header; the limit of ``numpy.load``."""


def token_array(source: Any) -> np.ndarray | None:
    """Token ids of any integer dtype in one or two dimensions; ``None`` if the source is text.

    A .npy file is mapped into memory, not read. Tensors are recognised by ``__array__`` or ``__dlpack__``.
    Raises ``CalibrationError`` for other dtypes and dimensions.
    """
    if isinstance(source, Path):
        tokens = _map_npy(source) if source.suffix == ".npy" else None
    else:
        tokens = _from_object(source)
    if tokens is not None and (tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer)):
        raise CalibrationError(
            f"token arrays must be integers of one or two dimensions, got {tokens.dtype} {tokens.shape}; "
            "give token ids of shape (n,) or (samples, seq_len)"
        )
    return tokens


def _from_object(source: Any) -> np.ndarray | None:
    if isinstance(source, Mapping) and "input_ids" in source:
        source = source["input_ids"]
    first = source
    while isinstance(first, list | tuple) and first:
        first = first[0]
    try:
        if hasattr(first, "__array__") or isinstance(first, int):
            return np.asarray(source)
        if hasattr(source, "__dlpack__"):
            return np.from_dlpack(source)
    except Exception as error:  # frameworks raise different errors for tensors on other devices
        raise CalibrationError(
            f"cannot read a {type(source).__name__} as an array of token ids ({reason(error)}); "
            "give rows of one length, on the CPU"
        ) from error
    return None


def _map_npy(path: Path) -> np.ndarray:
    with opened(path, "rb") as file:
        head = file.read(12)
    size = int.from_bytes(head[8:10] if head[6:7] == b"\x01" else head[8:12], "little")
    try:
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"its header claims {size} bytes")
        return np.lib.format.open_memmap(path, mode="r", max_header_size=MAX_HEADER_BYTES)
    except Exception as error:  # headers are parsed as Python literals, which fail in many ways
        raise CalibrationError(
            f"{path}: not a .npy array of tokens ({reason(error)[:200]}); save it with numpy.save"
        ) from None
