"""What these tests share: a weight held in memory, activations as real ones are, and GPTQ as its paper writes it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gs_core import (
    Data,
    QuantizationArgs,
    QuantizedTensor,
    numerics,
)
from gs_core.stages import unrecorded
from gs_core.testing import HeldLayer
from gs_gptq import GPTQ, Hessian, Options


def _median(diagonal: np.ndarray) -> float:
    alive = np.sort(diagonal[diagonal > 0])
    return float(alive[len(alive) // 2])


@pytest.fixture
def median() -> Callable[[np.ndarray], float]:
    """What damping is relative to: of those that are not zero, the upper one of two."""
    return _median


def observing(x: np.ndarray, plugin: GPTQ | None = None) -> dict[str, Any]:
    hessian = Hessian() if plugin is None else plugin.observe(site=None)
    hessian.update(x)
    return {"site": hessian.result()}


@pytest.fixture(scope="session")
def observed() -> Callable[[np.ndarray], dict[str, Any]]:
    """``(x)``: what the plugin observes when ``x`` arrives at the site."""
    return observing


@pytest.fixture(scope="session")
def quantized() -> Callable[..., QuantizedTensor]:
    """``(weight, x, args, dtype="float32", **options)``: one layer through the plugin's hooks."""

    def quantize(
        weight: np.ndarray, x: np.ndarray, args: QuantizationArgs, dtype: str = "float32", **options: object
    ) -> QuantizedTensor:
        plugin, layer = GPTQ(Options(**options)), HeldLayer(weight, args, dtype=dtype)
        return plugin.quantize(
            block=None, data=Data(), layers=[layer], observed=observing(x, plugin), record=unrecorded
        )[layer.name]

    return quantize


@pytest.fixture(scope="session")
def correlated() -> Callable[..., np.ndarray]:
    """``(seed, tokens, features, rank, outliers)``: float32 ``(tokens, features)``, most of whose variance lies in
    ``rank`` directions, with some channels forty times as large as the others and off centre."""

    def make(seed: int, tokens: int, features: int, rank: int, outliers: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        x = random.standard_normal((tokens, rank)) @ random.standard_normal((rank, features)) / rank**0.5
        x += 0.2 * random.standard_normal((tokens, features))
        large = random.permutation(features)[:outliers]
        x[:, large] = 40 * x[:, large] + 0.5
        return x.astype(np.float32)

    return make


@pytest.fixture(scope="session")
def output_error() -> Callable[..., float]:
    """``(weight, got, x)``: squared error of ``x @ got.T`` relative to the squares of ``x @ weight.T``, float64."""

    def error(weight: np.ndarray, got: np.ndarray | QuantizedTensor, x: np.ndarray) -> float:
        values = numerics.dequantize(got) if isinstance(got, QuantizedTensor) else got
        wanted = x.astype(np.float64) @ weight.T.astype(np.float64)
        return float(((x @ values.T.astype(np.float64) - wanted) ** 2).sum() / (wanted**2).sum())

    return error


@pytest.fixture(scope="session")
def textbook() -> Callable[..., tuple[np.ndarray, float]]:
    """GPTQ as Frantar et al. write it (algorithm 1, one column at a time), in float64.

    Factorise the Hessian, invert it, factorise the inverse; then round a column, divide its error by the pivot, and
    take the pivot's row of it away from the columns still to come. Returns codes ``(rows, columns)`` and how near
    any number came to the middle between two codes, where one more bit of precision might decide otherwise.
    """

    def solve(
        weight: np.ndarray,
        hessian: np.ndarray,
        added: float,
        args: QuantizationArgs,
        grid: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]],
    ) -> tuple[np.ndarray, float]:
        """``added``: to the diagonal. ``grid(column, weights so far)``: scale and zero point ``(rows,)`` for it."""
        left, hessian = weight.astype(np.float64), hessian.astype(np.float64)
        hessian = hessian + np.eye(len(hessian)) * added
        lower = np.linalg.cholesky(hessian)
        identity = np.eye(len(hessian))
        inverse = np.linalg.solve(lower.T, np.linalg.solve(lower, identity))
        upper = np.linalg.cholesky(inverse).T
        codes, margin = np.zeros_like(left), 1.0
        for column in range(left.shape[1]):
            scale, zero_point = grid(column, left)
            steps = left[:, column] / scale
            margin = min(margin, float(np.abs(steps - np.floor(steps) - 0.5).min()))
            code = np.clip(np.round(steps) + zero_point, args.number.minimum, args.number.maximum)
            codes[:, column] = code
            error = (left[:, column] - (code - zero_point) * scale) / upper[column, column]
            left[:, column:] -= np.outer(error, upper[column, column:])
        return codes, margin

    return solve
