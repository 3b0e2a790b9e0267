"""A layer to try an algorithm's arithmetic on, without a model around it."""

from gs_core.arrays import Array, namespace
from gs_core.interfaces import Layer, LayerInfo
from gs_schemas import QuantizationArgs, QuantizationScheme


class HeldLayer(Layer):
    """A layer that is nothing but its weight, ``(out, in)`` of any namespace.

    numbers: a scheme, or those of its weight alone.
    """

    def __init__(
        self,
        weight: Array,
        numbers: QuantizationScheme | QuantizationArgs | None = None,
        name: str = "layer",
        site: str = "site",
        dtype: str = "float32",
    ):
        super().__init__(LayerInfo(name, 0, (int(weight.shape[0]), int(weight.shape[1])), site, dtype))
        self._weight = weight
        if numbers is not None:
            self.scheme = QuantizationScheme(weights=numbers) if isinstance(numbers, QuantizationArgs) else numbers

    def weight(self) -> Array:
        return namespace(self._weight).asarray(self._weight, copy=True)

    def set_weight(self, weight: Array) -> None:
        self._weight = weight
