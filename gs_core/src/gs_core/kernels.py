"""Choosing a kernel: ask each for an objection, keep every objection, take the best that has none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gs_core import discovery, numerics
from gs_core.arrays import Array, astype, namespace
from gs_core.errors import PlanError
from gs_core.interfaces import Kernel, Request
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationScheme


@dataclass(frozen=True)
class Choice:
    """The kernel that serves a request, and why better ones do not."""

    name: str
    passed_over: tuple[tuple[str, str], ...]


def choose(request: Request, kernels: Mapping[str, Kernel]) -> Choice:
    """Highest priority first, names in order among equals. Raises ``PlanError`` with every objection."""
    objections: list[tuple[str, str]] = []
    for name, kernel in sorted(kernels.items(), key=lambda item: (-item[1].priority, item[0])):
        objection = kernel.unsupported(request)
        if objection is None:
            return Choice(name, tuple(objections))
        objections.append((name, objection))
    lines = "".join(f"\n  {name}: {why}" for name, why in objections)
    raise PlanError([f"no kernel for {request.scheme.describe()} on {request.device}:{lines}"])


def installed() -> dict[str, Kernel]:
    """Every kernel that loads; a broken one hurts only who asks for it (``gsq plugins`` shows it)."""
    found = {}
    for name, plugin in discovery.installed("kernel").items():
        if discovery.status(plugin) == "ok":
            found[name] = discovery.load("kernel", name)()
    return found


class Reference(Kernel):
    """Dequantize, then multiply, in float32: what every other kernel is compared with. Runs anywhere."""

    def unsupported(self, request: Request) -> str | None:
        args = request.scheme.weights
        if args is None or not args.number.is_integer:
            return f"knows integer weights, got {args.format if args else 'float'}"
        if request.scheme.inputs and not request.scheme.inputs.number.is_integer:
            return f"knows integer activations, got {request.scheme.inputs.format}"
        return None

    def pack(self, tensor: QuantizedTensor, scheme: QuantizationScheme) -> Any:
        return numerics.dequantize(tensor), scheme.inputs

    def linear(self, x: Array, packed: Any) -> Array:
        weight, inputs = packed
        xp = namespace(x)
        wide = astype(x, "float32")
        if inputs is not None:
            wide = numerics.fake_quantize(wide, inputs)
        return xp.astype(wide @ weight.T, x.dtype)
