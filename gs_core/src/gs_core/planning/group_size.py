"""Group sizes that divide: a preset falls back to smaller groups, a size that the user wrote does not."""

from collections.abc import Iterable

from gs_core.engines import fused_with
from gs_core.interfaces import LayerInfo
from gs_schemas import SCHEMES, QuantizationScheme

FALLBACK_SIZES = (64, 32)
"""Group sizes that presets fall back to, the preferred one first. Every engine with grouped weights has both."""
COMMON_SIZES = (32, 64, 96, 128, 256)
"""Group sizes that an error proposes."""


def shared_in_features(layers: Iterable[LayerInfo]) -> dict[str, frozenset[int]]:
    """By layer name: ``in_features`` of the layer and of all layers that engines fuse with it.

    Fused layers must have one group size, so it must divide each of these numbers.
    """
    layers = list(layers)
    together: dict[str, set[int]] = {}
    for layer in layers:
        together.setdefault(fused_with(layer.name), set()).add(layer.shape[1])
    return {layer.name: frozenset(together[fused_with(layer.name)]) for layer in layers}


def is_preset(scheme: QuantizationScheme) -> bool:
    """True if the scheme has a preset's name and its numbers."""
    return SCHEMES.get(scheme.name or "") == scheme


def fit_groups(scheme: QuantizationScheme, in_features: Iterable[int]) -> tuple[QuantizationScheme, str] | None:
    """A preset's scheme with the largest group size that divides all ``in_features``, and the reason.

    Returns ``None`` when the preset's size divides, and when no fallback divides either (the plan then refuses the
    layer).
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
    """What to do about a group size that does not divide ``in_features``."""
    sizes = [size for size in COMMON_SIZES if in_features % size == 0]
    if not sizes:
        return "Use scales per channel (scheme.weights.granularity: channel), or add an override for these layers"
    others = f" (or {', '.join(map(str, sizes[:-1]))})" if len(sizes) > 1 else ""
    return f"Use --group-size {sizes[-1]}{others}, or add an override for these layers to the recipe"
