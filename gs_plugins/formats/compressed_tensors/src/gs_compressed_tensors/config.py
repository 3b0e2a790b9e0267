"""The ``quantization_config`` of config.json: schemes to config groups, and back.

Keys and values: the ``QuantizationConfig`` model of the compressed-tensors library.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gs_core import CheckpointError, QuantizationArgs, QuantizationScheme
from gs_core.engines import is_expert
from gs_schemas import SchemaError, matches, named, validate

METHOD, PACKED, INTEGER = "compressed-tensors", "pack-quantized", "int-quantized"


# transformers decides how to read every expert from the first group whose targets speak of experts, and knows only
# packed words and float8 there. Plain int8 codes times their scale is the same arithmetic as float8 codes times
# theirs, so this group, which matches no layer, makes it read them right; vLLM passes over it.
INT8_EXPERTS = {
    "targets": ["re:^unmatched experts$"],
    "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
}


def layout(scheme: QuantizationScheme) -> str:
    """Weight-only schemes are packed into words; integer products need plain int8, one code to a byte."""
    return PACKED if scheme.inputs is None else INTEGER


def to_config(
    schemes: Mapping[str, QuantizationScheme],
    kept: Sequence[str],
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    """``quantization_config`` for these layers.

    The scheme of most layers targets every Linear but those in ``ignore``; others name their layers, which wins.
    Names are given as the checkpoint spells them and, where modules are spelt otherwise, as those are too: engines
    build their modules under one or the other.
    """
    groups: dict[QuantizationScheme, list[str]] = {}
    for layer, scheme in schemes.items():
        groups.setdefault(scheme.model_copy(update={"name": None}), []).append(layer)
    # Experts are one fused tensor to an engine, never a Linear: only other layers decide what most layers are.
    most = max(groups, key=lambda scheme: sum(not is_expert(layer) for layer in groups[scheme]), default=None)
    layouts = {layout(scheme) for scheme in groups}
    experts = any(is_expert(layer) and layout(scheme) == INTEGER for layer, scheme in schemes.items())
    return {
        "quant_method": METHOD,
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision" if layouts else "dense",
        "quantization_status": "compressed",
        "config_groups": ({"experts": INT8_EXPERTS} if experts else {})
        | {
            f"group_{number}": {
                "targets": ["Linear"] if scheme == most else spellings(layers, aliases),
                "weights": _args(scheme.weights),
                "input_activations": _args(scheme.inputs),
                "output_activations": None,
                "format": layout(scheme),
            }
            for number, (scheme, layers) in enumerate(groups.items())
        },
        "ignore": spellings({*kept, "lm_head"}, aliases),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def spellings(names: Iterable[str], aliases: Mapping[str, str]) -> list[str]:
    """Names as the checkpoint spells them and, where their modules are spelt otherwise, as those are too."""
    return sorted({*names} | {aliases[name] for name in names if name in aliases})


def _args(args: QuantizationArgs | None) -> dict[str, Any] | None:
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
        "actorder": None,  # activation order here keeps groups where they are, which a reader need not know
        "observer": None if args.dynamic else args.observer,
    }


def scheme_of(config: Mapping[str, Any], layer: str) -> QuantizationScheme | None:
    """The scheme of a layer, or None when it is ignored or no group targets it. Names win over classes.

    Raises ``CheckpointError`` for a configuration that cannot be read.
    """
    try:
        return _scheme_of(config, layer)
    except (SchemaError, AttributeError, TypeError, re.error) as error:
        raise CheckpointError(f"cannot read this quantization_config of {METHOD}: {error}") from None


def _scheme_of(config: Mapping[str, Any], layer: str) -> QuantizationScheme | None:
    if any(target_matches(target, layer) for target in config.get("ignore") or ()):
        return None
    groups = list((config.get("config_groups") or {}).values())
    for by_name in (True, False):
        for group in groups:
            for target in group.get("targets") or ():
                if target_matches(target, layer) if by_name else target == "Linear":
                    args = {"weights": group.get("weights"), "inputs": group.get("input_activations")}
                    args = {k: _read_args(v) for k, v in args.items()}
                    return named(validate(QuantizationScheme, args, "its scheme"))
    return None


def target_matches(target: str, layer: str) -> bool:
    """A full name, or a regular expression after ``re:`` (anchored at the start, as the library does)."""
    return matches(target, layer) if target.startswith("re:") else target == layer


def _read_args(given: Mapping[str, Any] | None) -> QuantizationArgs | None:
    if given is None:
        return None
    if given.get("type") != "int" or given.get("num_bits") not in range(2, 9):
        raise CheckpointError(
            f"cannot read {METHOD} numbers of type {given.get('type')} with num_bits {given.get('num_bits')}"
        )
    strategy = given.get("strategy") or ("group" if given.get("group_size") else "tensor")
    args = {
        "format": f"int{given['num_bits']}",
        "granularity": strategy,
        "group_size": given.get("group_size") if strategy == "group" else None,
        "symmetric": bool(given.get("symmetric", True)),
        "dynamic": bool(given.get("dynamic", False)),
    }
    return validate(QuantizationArgs, args, "its numbers")
