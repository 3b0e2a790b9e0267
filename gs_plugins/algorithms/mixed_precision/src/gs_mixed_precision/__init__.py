"""Mixed precision: of several schemes one for each layer, so that the whole keeps a budget of bits at the least loss.

The multiple-choice knapsack of "HAWQ-V3" (Yao et al., https://arxiv.org/abs/2011.10680), solved exactly as an integer
programme by HiGHS (https://highs.dev). The core measures the losses (``gs_core.allocation``).
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import Field, model_validator
from scipy.optimize import Bounds, LinearConstraint, milp

from gs_core import Allocator, Choice, PlanError, Strict
from gs_schemas import QuantizationScheme
from gs_schemas.recipe import SchemeOrName

GIGABYTE = 10**9


class Options(Strict):
    """
    candidates: the schemes to choose from, presets' names or their numbers.
    bits: the goal as bits for each weight of the decoder blocks, scales and zero points counted.
    size: the goal as gigabytes of all weights of the checkpoint. One of the two.
    samples: calibration samples that the losses are measured on.
    """

    candidates: list[SchemeOrName] = Field(min_length=2)
    bits: float | None = Field(None, gt=0)
    size: float | None = Field(None, gt=0)
    samples: int = Field(8, gt=0)

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.bits is None) == (self.size is None):
            raise ValueError("give one goal: bits (for each weight) or size (in gigabytes)")
        if any(scheme.weights is None for scheme in self.candidates):
            raise ValueError("every candidate needs numbers for weights")
        return self


class MixedPrecision(Allocator):
    """Chooses before the line begins; the algorithms after it in the recipe do the quantizing."""

    Options = Options

    @property
    def candidates(self) -> Sequence[QuantizationScheme]:  # type: ignore[override]
        return self.options.candidates

    @property
    def samples(self) -> int:  # type: ignore[override]
        return self.options.samples

    def choose(self, choices: Sequence[Choice], fixed: int, outside: int) -> list[int]:
        if self.options.bits is not None:
            open_, closed = (sum(layer.shape[0] * layer.shape[1] for c in choices for layer in c.layers), fixed)
            budget, unit = self.options.bits * open_, open_
            closed = 0
        else:
            budget, unit, closed = self.options.size * 8 * GIGABYTE, 8 * GIGABYTE, fixed + outside
        picked = least_loss([c.losses for c in choices], [c.bits for c in choices], budget - closed)
        if picked is None:
            least = (closed + sum(min(c.bits) for c in choices)) / unit
            asked = f"bits: {self.options.bits}" if self.options.bits else f"size: {self.options.size}"
            raise PlanError([f"algorithm 'mixed_precision': {asked} cannot be kept; the candidates need {least:.4g}"])
        return picked


def least_loss(losses: Sequence[Sequence[float]], bits: Sequence[Sequence[float]], budget: float) -> list[int] | None:
    """One candidate for each choice: of all that keep within ``budget`` bits, those of the least total loss; ``None``
    when nothing keeps within. Exact."""
    sizes = [len(row) for row in losses]
    loss, cost = (np.concatenate([np.asarray(row, float) for row in table]) for table in (losses, bits))
    one_each = np.zeros((len(sizes), len(loss)))
    for number, (size, end) in enumerate(zip(sizes, np.cumsum(sizes), strict=True)):
        one_each[number, end - size : end] = 1
    scale = max(float(loss.max()), 1e-300)  # the solver's tolerances are absolute
    found = milp(
        loss / scale,
        integrality=np.ones(len(loss)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(cost / max(budget, 1.0), ub=budget / max(budget, 1.0)),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    return [int(np.argmax(part)) for part in np.split(found.x, np.cumsum(sizes)[:-1])]
