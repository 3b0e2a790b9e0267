"""What a kernel is, and what is asked of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from gs_core.arrays import Array
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationScheme


@dataclass(frozen=True)
class Request:
    """What is asked of a kernel."""

    scheme: QuantizationScheme
    shape: tuple[int, int]
    device: str


class Kernel(ABC):
    """One operation on one device: ``x @ weight.T`` for a packed quantized weight."""

    priority: ClassVar[int] = 0

    @abstractmethod
    def unsupported(self, request: Request) -> str | None:
        """Why it cannot serve the request, or ``None``."""

    @abstractmethod
    def pack(self, tensor: QuantizedTensor, scheme: QuantizationScheme) -> Any:
        """The weight in the layout this kernel reads. ``scheme.inputs`` must be dynamic or ``None``."""

    @abstractmethod
    def linear(self, x: Array, packed: Any) -> Array:
        """``(..., in_features)`` to ``(..., out_features)``."""
