"""Watching a module compute: which weight multiplies which tensor.

A weight is recognised by its storage wherever it is used (a ``Linear``, a slice of a fused expert parameter, a
bare ``F.linear``), so nothing here depends on module classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Use:
    """One product ``x @ weight.T``: the parameter, which expert's slice of it, and whether it lies transposed.

    ``expert`` is None for a plain matrix, and -1 for a product with all experts at once.
    """

    parameter: str
    expert: int | None
    transposed: bool


OnUse = Callable[[Use, torch.Tensor, Callable[[torch.Tensor], torch.Tensor], torch.Tensor], torch.Tensor]
"""``(use, x, compute, weight)`` to the product; ``compute(x)`` is what would have happened."""


class Watch(TorchFunctionMode):
    """While active, every product with a known parameter goes through ``on_use``."""

    def __init__(self, parameters: dict[str, torch.Tensor], on_use: OnUse):
        super().__init__()
        self._known = {p.untyped_storage()._cdata: (name, p) for name, p in parameters.items()}
        self._on_use = on_use

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = _product(func, args, kwargs)
        if found is None:
            return func(*args, **kwargs)
        x, weight, transposed, rebuild = found
        known = self._known.get(weight.untyped_storage()._cdata)
        if known is None:
            return func(*args, **kwargs)
        name, parameter = known
        use = Use(name, _expert(parameter, weight), transposed)
        return self._on_use(use, x, lambda y: func(*rebuild(y)[0], **rebuild(y)[1]), weight)


def _expert(parameter: torch.Tensor, weight: torch.Tensor) -> int | None:
    if parameter.ndim < 3:
        return None
    if weight.ndim >= 3 or not parameter.stride(0):
        return -1
    return (weight.storage_offset() - parameter.storage_offset()) // parameter.stride(0)


def _product(func, args, kwargs):
    """``(x, weight, transposed, rebuild)`` when ``func`` multiplies an activation by a matrix."""
    if func is F.linear:
        x, weight = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"]
        rest = args[2:]
        others = {k: v for k, v in kwargs.items() if k not in ("input", "weight")}
        return x, weight, False, lambda y: ((y, weight, *rest), others)
    if func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.bmm, torch.Tensor.bmm):
        if len(args) != 2 or not all(isinstance(a, torch.Tensor) for a in args) or args[1].ndim < 2:
            return None
        x, weight = args
        # A transposed view of a stored (out, in) matrix multiplies as F.linear does.
        stored = weight.stride(-1) == 1 or weight.shape[-1] == 1
        return x, weight, stored, lambda y: ((y, weight), kwargs)
    if func in (torch.addmm, torch.Tensor.addmm) and len(args) == 3 and not kwargs:
        bias, x, weight = args
        return x, weight, True, lambda y: ((bias, y, weight), {})
    return None


def identity(x: torch.Tensor) -> tuple:
    """Equal for two views of the same numbers, as long as both are alive."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.numel()
