"""What serving engines do alike with layers of the usual names, for the checkpoint formats that they load."""

import re
from collections.abc import Mapping

from gs_core.interfaces import LayerInfo
from gs_schemas import QuantizationArgs, QuantizationScheme

FUSED = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"}))
"""The projections of one module that share an input: engines make one product of each family."""


def is_expert(layer: str) -> bool:
    """Whether the layer is one of a mixture's numbered experts."""
    return re.search(r"(^|\.)experts\.\d+\.", layer) is not None


def fused_with(layer: str) -> str:
    """One name for all layers that engines fuse with this one: the projections of a family, the experts of a block."""
    if is_expert(layer):
        return re.split(r"(?<=experts)\.\d+\.", layer)[0]
    parent, _, leaf = layer.rpartition(".")
    family = next((family for family in FUSED if leaf in family), None)
    return layer if family is None else f"{parent}.{'+'.join(sorted(family))}"


def fit_experts(layer: LayerInfo, scheme: QuantizationScheme) -> tuple[QuantizationScheme, str] | None:
    """Engines have kernels for quantized experts with activations per token alone: for a ``CheckpointFormat.fit``."""
    if not is_expert(layer.name) or scheme.inputs is None or scheme.inputs.dynamic is not False:
        return None
    inputs = QuantizationArgs(format=scheme.inputs.format, granularity="token", dynamic=True)
    fitted = QuantizationScheme(weights=scheme.weights, inputs=inputs)
    return fitted, "engines quantize the activations of experts per token"


def fused_conflicts(layers: Mapping[str, QuantizationScheme | None]) -> list[str]:
    """Which layers would be fused but have two schemes: for a ``CheckpointFormat.conflicts``."""
    found = []
    for layer, scheme in layers.items():
        parent, _, leaf = layer.rpartition(".")
        family = next((family for family in FUSED if leaf in family), frozenset())
        for other in sorted(family):
            sibling = f"{parent}.{other}"
            if layer < sibling and sibling in layers and layers[sibling] != scheme:
                mine, its = (s.describe() if s else "float" for s in (scheme, layers[sibling]))
                found.append(
                    f"{layer} is {mine} and {sibling} is {its}: engines fuse them into one product; "
                    "give both the same scheme"
                )
    return found
