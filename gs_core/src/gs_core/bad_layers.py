"""Notes on layers with a much larger quantization error than is usual for their scheme, with advice for the recipe."""

from collections.abc import Mapping, Sequence
from typing import Any

from gs_core.planning import Plan, Row
from gs_schemas import SCHEMES, QuantizationScheme

MAX_WEIGHT_ERROR = {2: 0.5, 3: 0.2, 4: 0.05, 5: 0.03, 6: 0.02, 7: 0.02, 8: 0.02}
"""Usual relative squared error of a layer's output is below this limit, by bits of the weights.

Measured errors of presets: at most 0.4 % at eight bits (smoothquant, osp and rtn on SmolLM2 and a model of Gemma 3's
shape), 0.6 % at four bits and 0.9 % at three (gptq and awq on these and the bundled models). Rounding of normally
distributed weights has errors of about 1 % at four bits, 5 % at three and 20 % at two.
"""
MAX_INPUT_ERROR = {4: 0.1, 5: 0.05, 6: 0.03, 7: 0.02, 8: 0.02}
"""The same by bits of the inputs."""


def notes_on(plan: Plan, layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note for each bad layer, the largest error first, with lines for the recipe that reduce the error.

    layers: rows of the report, with ``layer``, ``scheme``, ``error`` and ``error_of``.
    """
    rows = {row.layer.name: row for row in plan.rows}
    return [
        f"{layer['layer']}: large {layer['error_of']} error, {_percent(layer['error'])}; {layer['scheme']} usually "
        f"has less than {_percent(max_error(scheme))}. {_advice(plan, rows[layer['layer']], scheme)}"
        for layer in sorted(layers, key=lambda layer: -layer["error"])
        if (scheme := rows[layer["layer"]].scheme) is not None and layer["error"] > max_error(scheme)
    ]


def max_error(scheme: QuantizationScheme) -> float:
    """The limit for a layer with this scheme: the larger one of those for weights and inputs."""
    limits = [(MAX_WEIGHT_ERROR, scheme.weights), (MAX_INPUT_ERROR, scheme.inputs)]
    return max(known[min(max(known), max(min(known), args.bits))] for known, args in limits if args is not None)


def _advice(plan: Plan, row: Row, scheme: QuantizationScheme) -> str:
    """Lines for the recipe. They name all layers with the same input: engines fuse these and need one scheme."""
    sharing = [other.layer.name for other in plan.rows if other.layer.site == row.layer.site and other.scheme]
    keep = f"add to ignore, which keeps it in floating point: [{', '.join(sharing)}]"
    finer = next((name for name in _finer(scheme) if not plan.format.unsupported(row.layer, SCHEMES[name])), None)
    if finer is None:
        return f"In the recipe, {keep}"
    entries = ", ".join(f"{{match: {name}, scheme: {finer}}}" for name in sharing)
    return f"In the recipe, add to overrides: [{entries}]. Or {keep}"


def _finer(scheme: QuantizationScheme) -> list[str]:
    """Presets with smaller errors, the smallest change first."""
    if scheme.inputs is None:
        return ["W8A16"] if scheme.weights is not None and scheme.weights.bits < 8 else []
    if scheme.inputs.bits < 8:
        return ["W8A8"]
    return ["W8A16"] if scheme.inputs.dynamic else ["W8A8", "W8A16"]


def _percent(error: float) -> str:
    return f"{100 * error:.2g} %"
