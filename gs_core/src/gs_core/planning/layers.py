"""Whether a layer can be treated as a recipe says."""

from collections.abc import Mapping, Sequence

from gs_core import numerics
from gs_core.interfaces import Algorithm, CheckpointFormat, LayerInfo
from gs_core.planning.group_size import advice
from gs_core.stages import implements
from gs_schemas import QuantizationScheme


def objections(
    layer: LayerInfo,
    scheme: QuantizationScheme,
    algorithms: Sequence[Algorithm],
    names: tuple[str, ...],
    checkpoint_format: CheckpointFormat,
    hidden: int,
) -> list[str]:
    """Why this layer cannot be treated so; empty when it can."""
    assert scheme.weights is not None
    found = _order(dict(zip(names, algorithms, strict=True)))
    if scheme.weights.after is not None:
        found.append("scheme.weights.after: no installed algorithm quantizes in two stages; remove it")
    if not scheme.weights.number.is_integer:
        found.append(f"scheme.weights.format: numerics for '{scheme.weights.format}' are not installed")
    why = numerics.objection(layer.shape, scheme.weights)
    if why:
        grouped = scheme.weights.granularity == "group"
        change = advice(layer.shape[1]) if grouped else "Change scheme.weights, or add an override for these layers"
        found.append(f"{why}. {change}")
    for name, algorithm in zip(names, algorithms, strict=True):
        why = algorithm.unsupported(layer, scheme)
        if why:
            found.append(f"algorithm '{name}': {why}")
        if algorithm.scatters(scheme) and not checkpoint_format.holds_group_index:
            found.append(
                f"algorithm '{name}' would group input features that are not neighbours, which this checkpoint "
                "format cannot hold; for gptq set static_groups: true"
            )
        for kind, fix in algorithm.leaves_online(layer, hidden).items():
            why = checkpoint_format.unsupported_online(kind, scheme)
            if why:
                found.append(f"algorithm '{name}': {why}; {fix}")
    why = checkpoint_format.unsupported(layer, scheme)
    if why:
        found.append(why)
    return found


def _order(algorithms: Mapping[str, Algorithm]) -> list[str]:
    """The last of a layer's algorithms quantizes it. One before it that could quantize too must have something else
    to do: then it does only that (``[awq, gptq]``: awq's scales, gptq's rounding), unless the last one refines its
    result (``[gptq, autoround]``)."""
    names = list(algorithms)
    quantizers = [n for n, a in algorithms.items() if implements(a, "quantize")]
    if not quantizers:
        return [f"algorithms {names}: none of them quantizes; name one that does last, such as rtn or gptq"]
    if names[-1] != quantizers[-1]:
        return [f"algorithms {names}: '{quantizers[-1]}' quantizes and must come last"]
    idle = [n for n in quantizers[:-1] if not implements(algorithms[n], "smooth")]
    if len(idle) > algorithms[names[-1]].refines:
        return [f"algorithms {names}: {' and '.join([*idle, names[-1]])} both quantize; keep one of them"]
    return []
