"""Smaller groups for layers that the group size of a preset does not divide. A size from the user is never replaced."""

from collections.abc import Iterable

from gs_core.engines import fused_with
from gs_core.interfaces import LayerInfo
from gs_schemas import SCHEMES, QuantizationScheme

FALLBACK_SIZES = (64, 32)
"""Smaller group sizes for presets, the preferred one first. Every engine with grouped weights supports both."""
COMMON_SIZES = (32, 64, 96, 128, 256)
"""Group sizes that an error message proposes."""


def shared_in_features(layers: Iterable[LayerInfo]) -> dict[str, frozenset[int]]:
    """``in_features`` of each layer and of all layers that engines fuse with it, by layer name.

    Fused layers must have the same group size. It must divide all these numbers.
    """
    layers = list(layers)
    together: dict[str, set[int]] = {}
    for layer in layers:
        together.setdefault(fused_with(layer.name), set()).add(layer.shape[1])
    return {layer.name: frozenset(together[fused_with(layer.name)]) for layer in layers}


def is_preset(scheme: QuantizationScheme) -> bool:
    """True if the scheme has the name and the numbers of a preset."""
    return SCHEMES.get(scheme.name or "") == scheme


def fit_groups(scheme: QuantizationScheme, in_features: Iterable[int]) -> tuple[QuantizationScheme, str] | None:
    """The scheme of a preset with the largest smaller group size that divides all ``in_features``, and the reason.

    Returns ``None`` if the preset's own size divides them, or if no size does. The plan then refuses the layer.
    """
    args = scheme.weights
    if args is None or args.group_size is None:
        return None
    in_features = sorted(in_features)
    if all(features % args.group_size == 0 for features in in_features):
        return None
    for size in FALLBACK_SIZES:
        if size < args.group_size and all(features % size == 0 for features in in_features):
            fitted = scheme.model_copy(
                update={
                    "name": f"{scheme.name}_G{size}",
                    "weights": args.model_copy(update={"group_size": size}),
                }
            )
            odd = next(features for features in in_features if features % args.group_size)
            return fitted, f"groups of {size}: {args.group_size} does not divide in_features {odd}"
    return None


def advice(in_features: int) -> str:
    """Advice for an error: group sizes that divide ``in_features``."""
    sizes = [size for size in COMMON_SIZES if in_features % size == 0]
    if not sizes:
        return "Use scales per channel (scheme.weights.granularity: channel), or add an override for these layers"
    others = f" (or {', '.join(map(str, sizes[:-1]))})" if len(sizes) > 1 else ""
    return f"Use --group-size {sizes[-1]}{others}, or add an override for these layers to the recipe"
