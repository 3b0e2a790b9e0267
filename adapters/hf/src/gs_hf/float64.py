"""Run a module in float64 although its code casts to float32 and its parameters are narrower."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

NARROW_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NARROWING_CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)


class Float64(TorchFunctionMode):
    """While this mode is active, modules compute in float64.

    - A cast to a narrower dtype (``x.float()``, ``x.to(torch.float32)``, ``softmax(dtype=torch.float32)``) casts to
      float64. Norms and rotary embeddings in transformers cast to float32.
    - ``dtype`` of a narrower tensor returns float64, because modules cast to the dtype of their weights.
    - A function of tensors of several floating dtypes receives all of them in float64. A function of one tensor
      does not cast it, so a view of a parameter shares the storage of the parameter. ``Watch`` recognises parameters
      by their storage.
    - An embedding returns float64.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in NARROWING_CASTS:
            return args[0].double()
        if func is torch.Tensor.view:  # a dtype here reinterprets bytes
            return func(*args, **kwargs)
        if func is torch.Tensor.dtype.__get__:
            return _wide_dtype(func(*args))
        found = _floats([*args, *kwargs.values()])
        if torch.float64 in found and len(found) > 1 and not getattr(func, "__name__", "").endswith("_"):
            args, kwargs = _map(args, _wide_tensor), _map(kwargs, _wide_tensor)
        result = func(*_map(args, _wide_dtype), **_map(kwargs, _wide_dtype))
        return result.double() if func is F.embedding else result


def has_float64(device: str) -> bool:
    """True if the device multiplies float64 matrices."""
    try:
        one = torch.ones(1, 1, dtype=torch.float64, device=device)
        return bool((one @ one).item() == 1.0)
    except (RuntimeError, TypeError):  # torch raises TypeError for MPS
        return False


def _floats(values: Any) -> set[torch.dtype]:
    """Dtypes of the floating-point tensors among the arguments."""
    found: set[torch.dtype] = set()
    for value in values:
        if isinstance(value, torch.Tensor):
            found |= {value.dtype} if value.is_floating_point() else set()
        elif isinstance(value, list | tuple):
            found |= _floats(value)
    return found


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(item, change) for item in value)
    return change(value)


def _wide_dtype(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW_DTYPES else value


def _wide_tensor(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
