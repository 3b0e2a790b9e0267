"""A weight held in memory."""

import numpy as np
import pytest

from gs_core import Layer, LayerInfo, QuantizationArgs, QuantizationScheme


class Held(Layer):
    """A layer that is nothing but its weight."""

    def __init__(self, weight: np.ndarray, args: QuantizationArgs, name: str = "layer", dtype: str = "float32"):
        super().__init__(LayerInfo(name, 0, weight.shape, "site", dtype))
        self._weight = weight
        self.scheme = QuantizationScheme(weights=args)

    def weight(self) -> np.ndarray:
        return self._weight.copy()

    def set_weight(self, weight: np.ndarray) -> None:
        self._weight = weight


@pytest.fixture(scope="session")
def held() -> type[Held]:
    return Held
