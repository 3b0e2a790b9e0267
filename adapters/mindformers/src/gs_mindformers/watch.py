"""Watching cells compute: which weight multiplies which tensor."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np

from gs_mindformers import experts
from gs_mindformers.found import Key
from gs_mindformers.linear import Held
from gs_mindformers.standins import Swap
from gs_mindformers.tensors import identity, to_numpy, to_tensor


class Use(NamedTuple):
    """One product of an activation with a weight. ``given``: the tensor that the cell was called with, of which an
    expert's ``x`` is some rows."""

    key: Key
    x: ms.Tensor
    given: ms.Tensor
    compute: Callable[[ms.Tensor], ms.Tensor]

    def arrived(self) -> tuple:
        """Equal for two uses of one tensor, as long as it is alive."""
        return (*identity(self.given), self.key[1])


OnUse = Callable[[Use], ms.Tensor]
"""Gives the product; ``use.compute(use.x)`` is what would have happened."""


def listening(held: Iterable[Held], on_use: OnUse) -> list[Swap]:
    """What makes each of these cells call ``on_use``."""
    return [calling(each.cell, partial(_answer, each, on_use)) for each in held]


def calling(cell: ms.nn.Cell, answer: Callable[..., Any]) -> Swap:
    """``answer(compute, *args, **kwargs)`` in place of the cell's ``construct``, which ``compute`` is."""
    return cell.__dict__, "construct", partial(answer, cell.construct)


def _answer(held: Held, on_use: OnUse, construct: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    if not args:  # called by keywords alone: the input is the first
        name, x = next(iter(keywords.items()))
        rest = {k: v for k, v in keywords.items() if k != name}
        return _answer(held, on_use, lambda y, **more: construct(**{name: y}, **more), x, **rest)
    x, *others = args
    if held.experts is None:
        return on_use(Use((held.parameter, None), x, x, lambda y: construct(y, *others, **keywords)))

    def on_expert(number: int, rows: np.ndarray, product: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        use = Use((held.parameter, number), to_tensor(rows), x, lambda y: to_tensor(product(to_numpy(y))))
        return to_numpy(on_use(use))

    weight = to_numpy(held.cell._params["weight"]).astype(np.float32, copy=False)
    return experts.compute(held.cell, weight, held.transposed, x, (others, keywords), on_expert)
