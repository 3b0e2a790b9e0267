"""Mixed precision: what each candidate scheme does to the block's output, and a recipe in which one was chosen.

Layers that engines fuse, and the experts of one block, get one scheme. A candidate is judged by running the float
block with those layers alone quantized, on a few of the calibration samples: the error that reaches the block's output,
relative to each of its channels, averaged. Errors of different layers are small and hardly correlated, so they add.
"""

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gs_core import calibration, discovery, numerics
from gs_core.arrays import Array, RawTensor, numpy_dtype, to_raw
from gs_core.comparing import channel_error
from gs_core.errors import GoldenStickError, PlanError
from gs_core.interfaces import Algorithm, Allocator, Block, Choice, Layer, LayerInfo, Model, StaticInput
from gs_core.observers import limits_of, static_input
from gs_core.planning import (
    fit_groups,
    is_preset,
    load_algorithm,
    load_format,
    names_of,
    objections,
    shared_in_features,
)
from gs_core.probing import pattern
from gs_core.stages import Progress
from gs_core.watching import fake_quantizer
from gs_schemas import QuantizationArgs, QuantizationScheme, Recipe
from gs_schemas.recipe import Override


@dataclass(frozen=True)
class Allocation:
    """``recipe``: without its allocator, and with an override for every layer that it chose for. ``reasons``: why, by
    layer. ``summary``: one sentence."""

    recipe: Recipe
    reasons: Mapping[str, str]
    summary: str


def allocator_of(recipe: Recipe) -> Allocator | None:
    """The algorithm of a recipe that chooses schemes. Raises ``PlanError`` where it cannot."""
    for spec in (a for override in recipe.overrides for a in override.algorithms or []):
        if _allocates(spec.name):
            raise PlanError([f"algorithm '{spec.name}' chooses for the whole model; name it in the recipe's own list"])
    found = [spec for spec in recipe.algorithms if _allocates(spec.name)]
    if len(found) > 1:
        raise PlanError([f"'{found[0].name}' and '{found[1].name}' both choose schemes; keep one of them"])
    loaded = [load_algorithm(spec.name, spec.options) for spec in found]
    return loaded[0] if loaded and isinstance(loaded[0], Allocator) else None


def _allocates(name: str) -> bool:
    try:
        plugin = discovery.load("algorithm", name)
    except GoldenStickError:
        return False  # the plan says what is wrong with it, and with whatever else there is
    return isinstance(plugin, type) and issubclass(plugin, Allocator)


def allocate(
    recipe: Recipe, allocator: Allocator, model: Model, tokens: np.ndarray, progress: Progress = lambda *_: None
) -> Allocation:
    """Measure every candidate for every layer that the recipe leaves open, and let the allocator choose.

    tokens: int64 ``(samples, seq_len)``; the first ``allocator.samples`` are used. Raises ``PlanError`` when nothing
    can be chosen or the goal cannot be met.
    """
    specs = [spec for spec in recipe.algorithms if not _allocates(spec.name)]
    stages = [load_algorithm(spec.name, spec.options) for spec in specs]
    plain = recipe.model_copy(update={"algorithms": specs})
    open_layers = [n for n in model.layers if (rule := plain.rule_for(n.name))[0] is not None and rule[2] == "recipe"]
    groups = list(_groups(open_layers, allocator, plain, stages, model.hidden))
    if recipe.scheme not in allocator.candidates:
        schemes = " and ".join(scheme.describe() for scheme in allocator.candidates)
        raise PlanError(
            [
                f"the recipe's scheme ({recipe.scheme.describe()}) is not among the candidates of mixed precision "
                f"({schemes}). Change the candidates, or use a recipe without mixed precision"
            ]
        )
    if not groups:
        raise PlanError(["no layer is left to choose a scheme for: every one is ignored or overridden"])
    choices = list(_measured(groups, model, tokens[: allocator.samples], progress))
    closed = [layer for layer in model.layers if layer not in open_layers]
    fixed = sum(_stored_bits(layer, plain.rule_for(layer.name)[0]) for layer in closed)
    weights = sum(_stored_bits(layer, None) for layer in model.layers)
    picked = allocator.choose(choices, fixed, model.nbytes() * 8 - weights)
    overrides, reasons = [], {}
    for choice, pick in zip(choices, picked, strict=True):
        for layer in choice.layers:
            overrides.append(Override(match=glob.escape(layer.name), scheme=choice.schemes[pick]))
            reasons[layer.name] = f"predicted loss {choice.losses[pick]:.1e}{_others(choice, pick)}"
    bits = fixed + sum(choice.bits[pick] for choice, pick in zip(choices, picked, strict=True))
    loss = sum(choice.losses[pick] for choice, pick in zip(choices, picked, strict=True))
    elements = sum(layer.shape[0] * layer.shape[1] for layer in model.layers)
    summary = f"{bits / elements:.3f} bits a weight, predicted loss {loss:.3g}"
    changed = {"algorithms": specs, "overrides": [*recipe.overrides, *overrides]}
    return Allocation(recipe.model_copy(update=changed), reasons, summary)


def _others(choice: Choice, pick: int) -> str:
    found = zip(choice.schemes, choice.losses, strict=True)
    others = ", ".join(f"{s.describe()} {loss:.1e}" for n, (s, loss) in enumerate(found) if n != pick)
    return f" ({others})" if others else ", nothing else is possible"


def _groups(
    layers: Sequence[LayerInfo], allocator: Allocator, recipe: Recipe, stages: Sequence[Algorithm], hidden: int
) -> Iterator[tuple[list[LayerInfo], list[QuantizationScheme]]]:
    """Layers that must agree, and the candidates that nothing objects to."""
    chosen, checkpoint_format = tuple(names_of(recipe.algorithms, recipe.instances())), load_format(recipe.format)
    together: dict[tuple[int, str], list[LayerInfo]] = {}
    for layer in layers:
        together.setdefault((layer.block, pattern(layer.site)), []).append(layer)
    refused: list[str] = []
    in_features = shared_in_features(layers)
    for group in together.values():
        possible = []
        for candidate in allocator.candidates:
            grouped = fit_groups(candidate, in_features[group[0].name]) if is_preset(candidate) else None
            scheme = grouped[0] if grouped else candidate
            against = [why for n in group for why in objections(n, scheme, stages, chosen, checkpoint_format, hidden)]
            refused += against
            if not against:
                possible.append(scheme)
        if not possible:
            raise PlanError([f"{group[0].name}: no candidate can be used: {refused[-1]}"])
        yield group, possible


# --- measuring -----------------------------------------------------------------------------------------------


def _measured(
    groups: Sequence[tuple[list[LayerInfo], list[QuantizationScheme]]],
    model: Model,
    tokens: np.ndarray,
    progress: Progress,
) -> Iterator[Choice]:
    batches = calibration.batches(tokens)
    states: list[Mapping[str, RawTensor] | None] = [None] * len(batches)
    for index in range(len(model.blocks)):
        progress("measure", index, len(model.blocks))
        block = model.block(index, (batches[0], states[0]))
        bench = _Bench(block, list(zip(batches, states, strict=True)))
        for group, schemes in groups:
            if group[0].block == index:
                losses = tuple(bench.loss([block.layers[n.name] for n in group], scheme) for scheme in schemes)
                bits = tuple(sum(_stored_bits(layer, scheme) for layer in group) for scheme in schemes)
                yield Choice(tuple(group), tuple(schemes), losses, bits)
        states = [{name: to_raw(array) for name, array in outputs.items()} for outputs in bench.wanted]


class _Bench:
    """A float block, and what it returns, to be run with some of its layers quantized."""

    def __init__(self, block: Block, batches: Sequence[tuple[np.ndarray, Mapping[str, RawTensor] | None]]):
        self.block, self.batches = block, batches
        self.wanted = [block.run(*batch) for batch in batches]

    def loss(self, layers: Sequence[Layer], scheme: QuantizationScheme) -> float:
        """Mean over the batches of the squared relative error of the block's output."""
        assert scheme.weights is not None
        kept = [(layer, layer.weight()) for layer in layers]
        sites = dict.fromkeys(layer.site for layer in layers)
        inputs = {site: (scheme, self._static(site, scheme.inputs, layers[0].dtype)) for site in sites}
        try:
            for layer, weight in kept:
                args = scheme.weights.model_copy(update={"observer": "mse"})
                layer.set_weight(numerics.dequantize(numerics.quantize_weight(weight, args, layer.dtype)))
            errors = [
                channel_error(wanted["hidden"], self.block.run(*batch, fake_quantizer(inputs))["hidden"])
                for batch, wanted in zip(self.batches, self.wanted, strict=True)
            ]
        finally:
            for layer, weight in kept:
                layer.set_weight(weight)
        return float(np.mean(np.square(errors)))

    def _static(self, site: str, args: QuantizationArgs | None, dtype: str) -> StaticInput | None:
        if args is None or args.dynamic:
            return None
        found, seen = limits_of(args), []

        def listen(name: str, x: Array) -> None:
            if name == site:
                found.update(x)
                seen.append(x)

        for batch in self.batches:
            self.block.run(*batch, listen)
        return static_input(found, seen[0], args, numerics.scale_dtype(args, dtype)) if seen else None


def _stored_bits(layer: LayerInfo, scheme: QuantizationScheme | None) -> int:
    if scheme is None or scheme.weights is None:
        return layer.shape[0] * layer.shape[1] * numpy_dtype(layer.dtype).itemsize * 8
    return numerics.stored_bits(layer.shape, scheme.weights, layer.dtype)
