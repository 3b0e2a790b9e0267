"""Cells that hold a layer's weight, recognised by class name along the MRO: subclasses count, nothing is imported."""

from dataclasses import dataclass
from typing import Any

TENSOR_PARALLEL = "mindformers.parallel_core.inference.tensor_parallel"
LINEAR = "mindformers.modules.layers.Linear"
LINEARS = (
    LINEAR,
    "mindspore.nn.layer.basic.Dense",
    "mindspore.nn.layer.basic.Linear",
    f"{TENSOR_PARALLEL}.layers.LinearBase",  # column, row, QKV, merged, replicated
)
GROUPED = f"{TENSOR_PARALLEL}.grouped_layers.GroupedLinearBase"
CACHE = "mindformers.modules.paged_attention_mgr.PagedAttentionMgr"
FLOATS = ("float32", "float16", "bfloat16", "float64")


def is_a(cell: Any, *names: str) -> bool:
    """Whether one of the cell's classes has one of these names, dotted or bare."""
    known = {name for c in type(cell).__mro__ for name in (f"{c.__module__}.{c.__qualname__}", c.__qualname__)}
    return not known.isdisjoint(names)


@dataclass(frozen=True)
class Held:
    """A weight as a cell holds it.

    path: the cell's. parameter: the weight's name. transposed: whether it is stored ``(in, out)``. experts: how many
    matrices lie in it, None for a plain one. shape: ``(out, in)``.
    """

    path: str
    parameter: str
    cell: Any
    transposed: bool
    experts: int | None
    shape: tuple[int, int]

    def names(self) -> list[str]:
        """The layer, or the layer of each expert: ``ffn.w1`` becomes ``ffn.experts.0.w1``, as its rows are told
        apart from the other experts' by their own tokens."""
        whole = self.parameter.removesuffix(".weight")
        if self.experts is None:
            return [whole]
        parent, _, leaf = whole.rpartition(".")
        if parent.rpartition(".")[2] != "experts":
            parent = f"{parent}.experts".lstrip(".")
        return [f"{parent}.{number}.{leaf}" for number in range(self.experts)]


def held_by(path: str, cell: Any) -> Held | str | None:
    """The weight of a linear cell; why it cannot be taken; or None for a cell of another kind."""
    grouped = is_a(cell, GROUPED)
    if not grouped and not is_a(cell, *LINEARS):
        return None
    weight = cell._params.get("weight")
    if weight is None:
        return "has no weight of its own"
    dtype = str(weight.dtype).lower()
    if dtype not in FLOATS:
        return f"its weight is {dtype}, not a floating-point one: quantized already"
    experts = int(weight.shape[0]) if weight.ndim == 3 else None
    transposed = grouped or not getattr(cell, "transpose_b", True)
    rows, columns = (int(n) for n in (weight.shape[:-3:-1] if transposed else weight.shape[-2:]))
    return Held(path, weight.name, cell, transposed, experts, (rows, columns))
