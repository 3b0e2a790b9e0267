"""Products of experts: one matrix each, rows of the input divided among them.

Neither of MindFormers' two ways computes on a CPU (``BatchMatMul`` of reshaped tokens, ``GroupedMatmul`` of sorted
ones), and neither lets one expert's tokens be seen. So for our runs the cells compute expert by expert.
"""

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np

from gs_core import CalibrationError
from gs_mindformers.linear import GROUPED, is_a
from gs_mindformers.tensors import to_numpy, to_tensor

OnExpert = Callable[[int, np.ndarray, Callable[[np.ndarray], np.ndarray]], np.ndarray]
"""``(expert, x, compute)`` to the product; ``x`` is ``(tokens, in)``."""


def compute(cell: ms.nn.Cell, weight: np.ndarray, transposed: bool, x: ms.Tensor, more: Any, on_use: OnExpert) -> Any:
    """What ``cell`` returns for ``x`` (and its other arguments), each expert's product by way of ``on_use``.

    weight: ``(experts, in, out)`` when transposed, else ``(experts, out, in)``.
    """
    flat = to_numpy(x).reshape(-1, x.shape[-1]).astype(np.float32, copy=False)
    rows = _rows_of_each(cell, len(flat), len(weight), more)
    bias = cell._params.get("bias")
    biases = None if bias is None else to_numpy(bias).astype(np.float32).reshape(len(weight), -1)
    out = np.empty((len(flat), weight.shape[-1] if transposed else weight.shape[-2]), np.float32)
    for expert, taken in enumerate(rows):
        matrix = weight[expert] if transposed else weight[expert].T
        out[taken] = on_use(expert, flat[taken], _times(matrix))
        if biases is not None:
            out[taken] += biases[expert]
    result = to_tensor(out)
    if getattr(cell, "activation_flag", False):
        result = cell.activation(result)
    return result.astype(x.dtype).reshape((*x.shape[:-1], out.shape[-1]))


def _times(matrix: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x @ matrix


def _rows_of_each(cell: ms.nn.Cell, tokens: int, experts: int, more: Any) -> list[np.ndarray]:
    """The rows of the flattened input that are each expert's."""
    number = np.arange(tokens)
    if is_a(cell, GROUPED):
        ends = np.cumsum(_group_list(more))  # how many each gets
    elif cell.use_gmm:
        ends = _group_list(more)  # where each one's end
    else:
        by_expert = number.reshape(cell.outer_batch, experts, -1)
        return [by_expert[:, expert].reshape(-1) for expert in range(experts)]
    return np.split(number, ends.astype(np.int64)[:-1]) if len(ends) == experts else _refuse(len(ends), experts)


def _group_list(more: Any) -> np.ndarray:
    args, keywords = more
    found = keywords.get("group_list", args[-1] if args else None)
    if not isinstance(found, ms.Tensor):
        raise CalibrationError("a grouped linear layer was called without its group_list")
    return to_numpy(found)


def _refuse(found: int, experts: int) -> Any:
    raise CalibrationError(f"a grouped linear layer of {experts} experts was given a group_list of {found}")
