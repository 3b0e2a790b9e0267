"""Watching a module compute: which weight multiplies which tensor.

A weight is recognised by its storage wherever it is used (a ``Linear``, a slice of a fused expert parameter, a
bare ``F.linear``), so nothing here depends on module classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Use:
    """One product of an activation with a parameter.

    expert: which slice of a fused parameter; None for a plain matrix, -1 for all experts at once.
    transposed: the parameter is stored ``(in, out)``. outputs: how many features the product has.
    """

    parameter: str
    expert: int | None
    transposed: bool
    outputs: int


PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm, torch.bmm)
OnUse = Callable[[Use, torch.Tensor, Callable[..., torch.Tensor], torch.Tensor], torch.Tensor]
"""``(use, x, compute, weight)`` to the product; ``compute(x)`` is what would have happened, ``compute(x, other)`` the
same with another ``(out, in)`` matrix."""


class Watch(TorchFunctionMode):
    """While active, every product with a known parameter goes through ``on_use``, and is computed in ``dtype``."""

    def __init__(self, parameters: dict[str, torch.Tensor], on_use: OnUse, dtype: torch.dtype = torch.float32):
        super().__init__()
        self._dtype = dtype
        self._known = {p.untyped_storage()._cdata: (name, p) for name, p in parameters.items()}
        self._on_use = on_use

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        found = _product(func, args, kwargs)
        if found is None:
            return func(*args, **kwargs)
        x, weight, as_linear, rebuild = found
        known = self._known.get(weight.untyped_storage()._cdata)
        if known is None:
            return func(*args, **kwargs)
        name, parameter = known
        use = Use(
            name,
            _expert(parameter, weight),
            not as_linear and _lies_transposed(parameter, weight),
            int(weight.shape[0 if as_linear else -1]),
        )

        def compute(y: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
            operand = weight if other is None else other if as_linear else other.T
            again, others = rebuild(y, operand)
            again = tuple(_cast(operand, self._dtype) for operand in again)
            return func(*again, **{k: _cast(v, self._dtype) for k, v in others.items()}).to(y.dtype)

        return self._on_use(use, x, compute, weight)


def unwatched(use: Use, x: torch.Tensor, compute: Callable, weight: torch.Tensor) -> torch.Tensor:
    """An ``OnUse`` that leaves everything as it is."""
    return compute(x)


def _cast(operand: Any, dtype: torch.dtype) -> Any:
    return operand.to(dtype) if isinstance(operand, torch.Tensor) else operand


def _expert(parameter: torch.Tensor, weight: torch.Tensor) -> int | None:
    if parameter.ndim < 3:
        return None
    if weight.ndim >= 3 or not parameter.stride(0):
        return -1
    return (weight.storage_offset() - parameter.storage_offset()) // parameter.stride(0)


def _lies_transposed(parameter: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``x @ weight`` multiplies by the parameter as it is stored, and not by a transposed view of it."""
    if parameter.ndim == 2:
        return weight is parameter
    return tuple(weight.shape[-2:]) == tuple(parameter.shape[-2:])


def _product(func: Any, args: tuple, kwargs: dict) -> tuple[torch.Tensor, torch.Tensor, bool, Callable] | None:
    """``(x, weight, as_linear, rebuild)`` when ``func`` multiplies an activation by a matrix.

    ``as_linear``: the operand is ``(out, in)``, as ``F.linear`` has it, and not ``(in, out)``.
    """
    if func is F.linear:
        x, weight = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"]
        rest = args[2:]
        others = {k: v for k, v in kwargs.items() if k not in ("input", "weight")}
        return x, weight, True, lambda y, w: ((y, w, *rest), others)
    if func in PRODUCTS:
        if len(args) != 2 or not all(isinstance(a, torch.Tensor) for a in args) or args[1].ndim < 2:
            return None
        x, weight = args
        return x, weight, False, lambda y, w: ((y, w), kwargs)
    if func in (torch.addmm, torch.Tensor.addmm) and len(args) == 3 and not kwargs:
        bias, x, weight = args
        return x, weight, False, lambda y, w: ((bias, y, w), {})
    return None


def identity(x: torch.Tensor) -> tuple:
    """Equal for two views of the same numbers, as long as both are alive."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.numel()
