"""Packing a block: its layers and caches as the checkpoint holds them, and how far they are from what they were."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gs_core import numerics
from gs_core.arrays import Array
from gs_core.checks import array_fault, input_fault
from gs_core.comparing import relative_error
from gs_core.errors import CheckpointError, PluginError
from gs_core.interfaces import CacheNumbers, Layer, StaticInput
from gs_core.planning import Plan
from gs_core.quantized import QuantizedTensor
from gs_core.storage import Tensor
from gs_core.watching import Watch, fake_quantizer

TOKENS = 32
"""On which a layer's error is found, twice a product of them: on the bundled models within 8 % of that on all tokens on
average, and 6 % about that from layer to layer."""


@dataclass
class Outcome:
    """What happened to one block."""

    packed: list[tuple[str, Tensor]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    caches: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    rounding_errors: list[dict[str, Any]] = field(default_factory=list)
    """``VerifiedTransforms.rounding_error`` of the block, by algorithm."""


def pack_layer(
    plan: Plan, watch: Watch, layer: Layer, tensor: QuantizedTensor, static: StaticInput | None, outcome: Outcome
) -> None:
    """Add a layer to the outcome; the block computes with its rounded weight from now on, where that will be seen.

    static: the parameters of its input, where its site has some. Raises ``CheckpointError`` where they are missing.
    """
    rounded, site = numerics.dequantize(tensor), watch.sites.get(layer.site)
    error, of = _error(watch, layer, rounded, static)
    if watch.batches and of == "weight":
        outcome.notes.append(f"{layer.name}: no calibration token reached it; quantized from its weight alone")
    if not plan.float_only:
        layer.set_weight(rounded)
    if layer.scheme.inputs is None or layer.scheme.inputs.dynamic:
        static = None
    elif static is None:
        raise CheckpointError(
            f"{layer.name}: its scheme has static activations, but no calibration token reached it; "
            "give more or other calibration data, or an override with dynamic activations"
        )
    else:
        assert layer.scheme.inputs is not None
        fault = input_fault(static, layer.scheme.inputs)
        if fault:
            raise CheckpointError(
                f"{layer.name}: the static activations cannot be stored: {fault}. "
                "Give other calibration data, or an override with dynamic activations"
            )
    layout, online = plan.format.layout(layer.scheme), watch.block.online.get(layer.site)
    arrays = watch.stages.pack(plan.recipe.format, tensor, static, layout, online, layer.info)
    for suffix, array in arrays.items():
        fault = array_fault(suffix, array)
        if fault:
            raise PluginError(f"format '{plan.recipe.format}' packed {layer.name}.{suffix} wrongly: {fault}")
        outcome.packed.append((f"{layer.name}.{suffix}", array))
    outcome.layers.append(
        {
            "layer": layer.name,
            "shape": list(layer.shape),
            "scheme": layer.scheme.describe(),
            "algorithms": list(watch.rows[layer.name].algorithms),
            "error": float(f"{error:.4g}"),
            "error_of": of,
            "tokens": site.tokens if site else 0,
        }
        | ({} if online is None else {"online": online.describe()})
    )


def _error(watch: Watch, layer: Layer, rounded: Array, static: StaticInput | None) -> tuple[float, str]:
    """Of the layer's output on a sample of what arrives; of its weight, where nothing does."""
    site = watch.sites.get(layer.site)
    if site is None or not site.tokens:
        return relative_error(layer.view(), rounded), "weight"
    x = site.sample.result()
    x = x[:: max(1, x.shape[0] // TOKENS), :]
    seen = fake_quantizer({layer.site: (layer.scheme, static)}, online=watch.block.online)(layer.site, x)
    return relative_error(x @ layer.view().T, (x if seen is None else seen) @ rounded.T), "output"


def pack_caches(plan: Plan, watch: Watch, static: Mapping[str, StaticInput | None], outcome: Outcome) -> None:
    """Add the block's caches to the outcome. static: by site; None for what is dynamic."""
    for row in dict.fromkeys(watch.caches.values()):
        assert row.args is not None
        maps = {site.kind: watch.block.online.get(site.name) for site in row.cache.sites}
        kinds = {site.kind: static[site.name] for site in row.cache.sites}
        numbers = CacheNumbers(row.args, kinds, maps.get("key"))
        outcome.packed += plan.format.pack_cache(row.cache, numbers).items()
        for site in row.cache.sites:
            seen = watch.sites.get(site.name)
            error = None
            if seen is not None and seen.tokens:
                x = seen.sample.result()
                back = fake_quantizer({}, {site.name: (site, row.args, static[site.name])})(site.name, x)
                error = float(f"{relative_error(x, back):.4g}")
            outcome.caches.append(
                {
                    "cache": row.cache.name,
                    "of": site.kind,
                    "scheme": row.scheme.describe(),
                    "algorithm": row.algorithm,
                    "error": error,
                    "tokens": seen.tokens if seen else 0,
                }
                | ({} if (online := maps[site.kind]) is None else {"online": online.describe()})
            )
