"""Arrays as they cross hooks: torch tensors where there is torch, NumPy arrays otherwise.

Written against the Python array API, so this module imports no framework. What the standard has no word for
(bfloat16 and float8 dtypes, raw bytes) is said here by dtype *names* (``"bfloat16"``), once.
"""

from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

Array = Any
"""A torch tensor or a NumPy array."""
_NAMESPACES: dict[type, Any] = {}

# safetensors' dtype names, and the names that torch and ml_dtypes share.
SAFETENSORS_DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "I64": ("int64", 8), "I32": ("int32", 4),
    "I16": ("int16", 2), "I8": ("int8", 1), "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2),
    "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
PACKED_INT4 = "qint4x2"
"""MindSpore's name for bytes of two int4 values each; safetensors keeps them as I8 and says so in its metadata."""
_SAFETENSORS_NAMES = {name: code for code, (name, _) in SAFETENSORS_DTYPES.items()} | {PACKED_INT4: "I8"}
FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class RawTensor:
    """A tensor as a file holds it: dtype name, shape, little-endian bytes (C order, uint8)."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)


def namespace(x: Array) -> Any:
    """The array-API namespace of ``x`` (the algorithms' ``xp``)."""
    kind = type(x)
    if kind not in _NAMESPACES:  # loops ask at every step, where finding it anew would cost as much as the arithmetic
        _NAMESPACES[kind] = array_api_compat.array_namespace(x)
    return _NAMESPACES[kind]


def device(x: Array) -> Any:
    """Where ``x`` lies, for ``xp``'s functions (NumPy before 2 has no attribute for it)."""
    return array_api_compat.device(x)


def dtype_name(x: Array) -> str:
    """``float32``, ``bfloat16``, … for either kind of array."""
    return str(x.dtype).rpartition(".")[2]


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of that name; bfloat16 and float8 come from ml_dtypes, packed int4 is int8."""
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype("int8" if name == PACKED_INT4 else name)


def astype(x: Array, name: str) -> Array:
    """``x`` in the dtype of that name, by round to nearest even."""
    if dtype_name(x) == name:
        return x
    if array_api_compat.is_numpy_array(x):
        return x.astype(numpy_dtype(name))
    xp = namespace(x)
    return xp.astype(x, getattr(xp, name))


def transposed(x: Array, dtype: str = "float32") -> Array:
    """A copy of the transpose, laid out row by row: frameworks keep the old layout where they may."""
    xp = namespace(x)
    rows = xp.empty((x.shape[1], x.shape[0]), dtype=getattr(xp, dtype), device=device(x))
    rows[:, :] = xp.permute_dims(x, (1, 0))
    return rows


def round_in_place(x: Array) -> Array:
    """``x`` rounded half to even, in its own memory where its library can: fresh memory costs more than the rounding,
    and what wraps a library's functions costs more than a row does."""
    if hasattr(x, "round_"):
        return x.round_()
    return np.round(x, out=x) if isinstance(x, np.ndarray) else namespace(x).round(x)


def clip_in_place(x: Array, low: float, high: float) -> Array:
    """``x`` between two numbers, as ``round_in_place``."""
    if hasattr(x, "clip_"):
        return x.clip_(low, high)
    return np.clip(x, low, high, out=x) if isinstance(x, np.ndarray) else namespace(x).clip(x, low, high)


def to_numpy(x: Array) -> np.ndarray:
    """A NumPy array of the same numbers; bfloat16 as ml_dtypes' bfloat16. Shares memory where it can."""
    if array_api_compat.is_numpy_array(x):
        return x
    x = x.detach().cpu().contiguous()
    name = dtype_name(x)
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        xp = array_api_compat.array_namespace(x)
        width = xp.uint8 if name.startswith("float8") else xp.int16
        return x.view(width).numpy().view(numpy_dtype(name))
    return x.numpy()


def like(value: Array, x: Array) -> Array:
    """``value`` in the library, dtype and place of ``x``."""
    xp = namespace(x)
    value = value if namespace(value) is xp else xp.asarray(to_numpy(value))
    return xp.asarray(value, dtype=x.dtype, device=device(x))


def to_raw(x: Array) -> RawTensor:
    """The bytes of ``x`` for a file."""
    name, array = dtype_name(x), np.ascontiguousarray(to_numpy(x))
    return RawTensor(name, tuple(int(n) for n in x.shape), array.reshape(-1).view(np.uint8))


def from_raw(raw: RawTensor) -> np.ndarray:
    """A NumPy view of the bytes of a file."""
    return raw.data.view(numpy_dtype(raw.dtype)).reshape(raw.shape)


def safetensors_name(dtype: str) -> str:
    return _SAFETENSORS_NAMES[dtype]
