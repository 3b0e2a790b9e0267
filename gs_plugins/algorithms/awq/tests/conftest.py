"""What these tests share: weights held in memory, activations as real ones are, and layers that really run."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from gs_awq import AWQ, Moments, Options
from gs_core import (
    Array,
    ChannelScale,
    Fold,
    Layer,
    QuantizationArgs,
    QuantizedTensor,
    numerics,
)
from gs_core.testing import HeldLayer


def observing(x: Mapping[str, Array]) -> dict[str, Moments]:
    observed = {name: Moments() for name in x}
    for name, moments in observed.items():
        half = x[name].shape[0] // 2
        moments.update(x[name][:half, :])
        moments.update(x[name][half:, :])
    return observed


@pytest.fixture(scope="session")
def scaled() -> Callable[..., np.ndarray]:
    """``(fold, layers, x, **options)``: the scale ``(channels,)`` that the plugin chooses; ``x`` by site."""

    def smooth(fold: Fold, layers: list[Layer], x: Mapping[str, Array], **options: object) -> Array:
        block = SimpleNamespace(folds=lambda: [fold])
        found: list[ChannelScale] = AWQ(Options(**{"signed_scales": False} | options)).smooth(
            block=block, layers=layers, observed=observing(x)
        )
        (transform,) = found
        assert transform.fold is fold
        return transform.scale

    return smooth


@pytest.fixture(scope="session")
def quantized() -> Callable[..., QuantizedTensor]:
    """``(weight, x, args, **options)``: one layer through the plugin's clip search, by the moments of ``x`` exactly
    unless ``shrinkage`` is given."""

    def quantize(weight: Array, x: Array, args: QuantizationArgs, **options: object) -> QuantizedTensor:
        layer = HeldLayer(weight, args)
        return AWQ(Options(**{"signed_scales": False, "shrinkage": 0.0} | options)).quantize(
            layers=[layer], observed=observing({"site": x})
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
    """``(weight, got, x)``: squared difference between ``x @ got.T`` and ``x @ weight.T``, relative, in float64."""

    def error(weight: np.ndarray, got: np.ndarray | QuantizedTensor, x: np.ndarray) -> float:
        values = numerics.dequantize(got) if isinstance(got, QuantizedTensor) else got
        wanted = x.astype(np.float64) @ weight.T.astype(np.float64)
        return float(((x @ values.T.astype(np.float64) - wanted) ** 2).sum() / (wanted**2).sum())

    return error
