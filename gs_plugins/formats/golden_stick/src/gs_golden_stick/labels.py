"""The types that descriptions give to tensors (``W8A8_DYNAMIC``)."""

from collections.abc import Iterable, Mapping

from gs_golden_stick import caches
from gs_schemas import QuantizationScheme

FLOAT = "FLOAT"
DESCRIPTIONS = ("quantization_description.json", "quant_model_description.json")
"""Golden Stick's and msModelSlim's."""


def label(scheme: QuantizationScheme) -> str:
    """Bits of weights and activations: ``W4A16``, ``W8A8`` (static), ``W8A8_DYNAMIC``."""
    assert scheme.weights is not None
    if scheme.inputs is None:
        return f"W{scheme.weights.bits}A16"
    return f"W{scheme.weights.bits}A{scheme.inputs.bits}{'_DYNAMIC' if scheme.inputs.dynamic else ''}"


def describe(schemes: Mapping[str, QuantizationScheme], tensors: Iterable[str]) -> dict[str, str]:
    """The type of every tensor. All tensors of a layer have one, its bias too: engines refuse two."""
    found = {}
    for name in tensors:
        if name.endswith(caches.SUFFIXES):
            found[name] = caches.LABEL
            continue
        parts = name.split(".")
        owners = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        scheme = next((schemes[owner] for owner in owners if owner in schemes), None)
        found[name] = label(scheme) if scheme else FLOAT
    return found
