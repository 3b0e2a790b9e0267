"""The ``quantization_config`` of config.json: schemes to config groups, and back.

Keys and values: the ``QuantizationConfig`` model of the compressed-tensors library.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gs_core import CheckpointError, QuantizationArgs, QuantizationScheme
from gs_schemas import matches

METHOD, PACKED, INTEGER = "compressed-tensors", "pack-quantized", "int-quantized"


def layout(scheme: QuantizationScheme) -> str:
    """Weight-only schemes are packed into words; int8 products need plain int8."""
    return PACKED if scheme.inputs is None else INTEGER


def to_config(schemes: Mapping[str, QuantizationScheme], kept: Sequence[str], ordered: bool = False) -> dict[str, Any]:
    """``quantization_config`` for these layers. ``ordered``: weights carry a group index for each input feature.

    With one scheme the group targets every Linear but ``kept``; with several, each names its layers.
    """
    groups: dict[QuantizationScheme, list[str]] = {}
    for layer, scheme in schemes.items():
        groups.setdefault(scheme.model_copy(update={"name": None}), []).append(layer)
    layouts = {layout(scheme) for scheme in groups}
    return {
        "quant_method": METHOD,
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"] if len(groups) == 1 else layers,
                "weights": _args(scheme.weights, "group" if ordered else None),
                "input_activations": _args(scheme.inputs),
                "output_activations": None,
                "format": layout(scheme),
            }
            for number, (scheme, layers) in enumerate(groups.items())
        },
        "ignore": sorted({*kept, "lm_head"}),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _args(args: QuantizationArgs | None, actorder: str | None = None) -> dict[str, Any] | None:
    if args is None:
        return None
    return {
        "num_bits": args.bits,
        "type": "int",
        "symmetric": args.symmetric,
        "strategy": args.granularity,
        "group_size": args.group_size,
        "block_structure": None,
        "dynamic": bool(args.dynamic),
        "actorder": actorder,
        "observer": None if args.dynamic else args.observer,
    }


def scheme_of(config: Mapping[str, Any], layer: str) -> QuantizationScheme | None:
    """The scheme of a layer, or None when it is ignored or no group targets it. Names win over classes."""
    if any(target_matches(target, layer) for target in config.get("ignore") or ()):
        return None
    groups = list((config.get("config_groups") or {}).values())
    for by_name in (True, False):
        for group in groups:
            for target in group.get("targets") or ():
                if target_matches(target, layer) if by_name else target == "Linear":
                    return QuantizationScheme(
                        weights=_read_args(group.get("weights")), inputs=_read_args(group.get("input_activations"))
                    )
    return None


def target_matches(target: str, layer: str) -> bool:
    """A full name, or a regular expression after ``re:`` (anchored at the start, as the library does)."""
    return matches(target, layer) if target.startswith("re:") else target == layer


def _read_args(given: Mapping[str, Any] | None) -> QuantizationArgs | None:
    if given is None:
        return None
    if given.get("type") != "int" or given.get("num_bits") not in range(2, 9):
        raise CheckpointError(
            f"cannot read compressed-tensors numbers of type {given.get('type')}{given.get('num_bits')}"
        )
    strategy = given.get("strategy") or ("group" if given.get("group_size") else "tensor")
    return QuantizationArgs(
        format=f"int{given['num_bits']}",
        granularity=strategy,
        group_size=given.get("group_size") if strategy == "group" else None,
        symmetric=bool(given.get("symmetric", True)),
        dynamic=bool(given.get("dynamic", False)),
    )
