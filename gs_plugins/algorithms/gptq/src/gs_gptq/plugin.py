"""The stage plugin: a Hessian for each site, and the layers that share it solved together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gs_core import (
    Accumulator,
    Algorithm,
    Array,
    Block,
    Data,
    Layer,
    LayerInfo,
    Needs,
    QuantizedTensor,
    Site,
    Strict,
    hookimpl,
    namespace,
    numerics,
)
from gs_core.arrays import astype, device, transposed
from gs_core.hookspecs import Record
from gs_core.numerics import panels
from gs_core.products import rough_products
from gs_gptq.asymmetric import Arrivals, Prefix
from gs_gptq.grid import Grid
from gs_gptq.guided import Coupling, couplings
from gs_gptq.hessian import SLICE, Factors, Hessian, factor
from gs_gptq.scales import weight_params
from gs_gptq.solver import solve
from gs_schemas import QuantizationArgs, QuantizationScheme

ELEMENTS = 2**24
"""Weights in one problem: more rows make better use of each step, up to where they leave the cache anyway."""

LITTLE_DAMPING = 0.005
"""With less than this, what rough products lose of a Hessian would show."""


class Options(Strict):
    """
    act_order: take the features with the largest activations first, while there is the most left to compensate.
    static_groups: choose every scale before the first feature is rounded, in the order the features are stored in;
        without it scales follow the feedback, and with ``act_order`` groups are no longer neighbours.
    damping: what is added to the Hessian's diagonal, relative to its median.
    block_size: features that receive the feedback of all before them in one product, which is held for so many.
    observer: how scales are chosen: the scheme's own, or ``hessian``: the clipping that costs the least output
        error, each feature weighed by its conditional variance.
    signed_scales: symmetric scales of up to four bits may be negative (``gs_gptq.scales``).
    sweeps: how many times all codes and the scales of groups are looked at once more when the last is known. Each
        costs the products of two first passes. None is 1, and 0 for integers of eight bits, which gain next to nothing.
    guided: sweeps weigh the errors of a layer's outputs together, by what they do to the model's predictions
        (``gs_gptq.guided``). The float model runs over a part of the data and back, and each block back once more; a
        matrix as large as its outputs squared is held for each layer of a block.
    asymmetric: quantize sites in the order of execution, each seen anew, and make up for what was quantized before
        (``gs_gptq.asymmetric``). The block runs about six times more, and the float model's activations are kept on
        disk beside the quantized one's.
    """

    act_order: bool = True
    static_groups: bool = True
    damping: float = Field(0.02, ge=0.0, le=1.0)
    block_size: int = Field(512, gt=0)
    observer: str = Field("hessian", pattern="^(scheme|hessian)$")
    signed_scales: bool = True
    sweeps: int | None = Field(None, ge=0)
    guided: bool = False
    asymmetric: bool = False


@dataclass(frozen=True)
class Factored:
    """What the layers of a site share: ``order`` (position → feature, the last taken first), the factors, and what an
    error in a feature costs when scales are chosen; both by position."""

    order: Array
    factors: Factors
    importance: Array

    @property
    def position(self) -> Array:
        """Feature → position."""
        return namespace(self.order).argsort(self.order)

    def solve(self, y: Array) -> Array:
        """``H⁻¹ y`` for ``y`` ``(features, n)``, by feature."""
        xp = namespace(y)
        return xp.take(self.factors.solve(xp.take(y, self.order, axis=0)), self.position, axis=0)


class GPTQ(Algorithm):
    """Layers without a Hessian (no token reached them) are rounded to nearest."""

    Options = Options

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        args = scheme.weights
        if args is not None and args.granularity == "block":
            return "scales by block are not implemented here; use granularity channel or group, or rtn"
        return None

    def scatters(self, scheme: QuantizationScheme) -> bool:
        grouped = scheme.weights is not None and scheme.weights.granularity == "group"
        return grouped and self.options.act_order and not self.options.static_groups

    def needs(self, scheme: QuantizationScheme) -> Needs:
        # Errors are weighed as well by what the float model's layers see, but for activations of few bits, which are
        # far from those (docs/algorithms/gptq.md has figures).
        coarse = scheme.inputs is not None and scheme.inputs.bits < 8
        asymmetric, guided = self.options.asymmetric, self.options.guided
        return Needs(
            data=True,
            gradient=guided,
            float_stream=asymmetric or guided,
            loss=guided,
            float_only=not asymmetric and not guided and not coarse,
        )

    @hookimpl
    def observe(self, site: Site) -> Accumulator | None:
        return None if self.options.asymmetric else Hessian(exact=self.options.damping < LITTLE_DAMPING)

    @hookimpl
    def quantize(
        self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any], data: Data, record: Record
    ) -> dict[str, QuantizedTensor]:
        if not self.options.asymmetric and not self.options.guided:
            return self._at_once(layers, observed, {})
        with rough_products(None):  # asked for by those who want the most accurate, and care less for time
            coupled = couplings(block, layers, data) if self.options.guided else {}
            if self.options.guided:
                record(guided=sorted(coupled))
            if self.options.asymmetric:
                return self._in_order(Prefix(block, data), layers, coupled)
            return self._at_once(layers, observed, coupled)

    def _at_once(
        self, layers: Sequence[Layer], observed: Mapping[str, Any], coupled: Mapping[str, Array]
    ) -> dict[str, QuantizedTensor]:
        by_site: dict[str, list[Layer]] = {}
        for layer in layers:
            by_site.setdefault(layer.site, []).append(layer)
        found: dict[str, QuantizedTensor] = {}
        # The largest matrix first: it is gone when the others are worked on.
        for site, sharing in sorted(by_site.items(), key=lambda item: -item[1][0].shape[1]):
            arrivals = Arrivals(observed[site]) if site in observed else None
            found |= self._quantize(sharing, arrivals, coupled)
        return found

    def _in_order(
        self, prefix: Prefix, layers: Sequence[Layer], coupled: Mapping[str, Array]
    ) -> dict[str, QuantizedTensor]:
        found: dict[str, QuantizedTensor] = {}
        try:
            for step in prefix.steps(layers):
                arrivals = prefix.arrivals(step)
                for site, sharing in step.items():
                    found |= self._quantize(sharing, arrivals.pop(site, None), coupled)
                for layer in (layer for sharing in step.values() for layer in sharing):
                    prefix.quantized(layer, found[layer.name])
        finally:
            prefix.close()
        return found

    def _quantize(
        self, layers: list[Layer], arrivals: Arrivals | None, coupled: Mapping[str, Array]
    ) -> dict[str, QuantizedTensor]:
        """The layers of one site. ``arrivals``, whose Hessian is used up, is None where no token reached it."""
        if arrivals is None:
            return {n.name: numerics.quantize_weight(n.view(), n.args, n.dtype) for n in layers}
        factored = self._factor(arrivals.hessian)
        found: dict[str, QuantizedTensor] = {}
        for group in _groups(layers):
            args, dtype = group[0].args, group[0].dtype
            # The weight has no name here: it is gone when its rounding begins.
            whole = self._solve(
                arrivals.target(_joined(group), factored.solve), factored, args, dtype, _coupled(group, coupled)
            )
            found |= _divide(whole, group)
        return found

    def _factor(self, observed: Hessian) -> Factored:
        hessian = observed.take()
        xp = namespace(hessian)
        diagonal = xp.linalg.diagonal(hessian) + 0.0
        features = xp.arange(hessian.shape[0], device=device(hessian))
        order = xp.argsort(diagonal, stable=True) if self.options.act_order else xp.flip(features)
        for a, b in panels(hessian.shape[0], SLICE):
            hessian[a:b, :] = xp.take(hessian[a:b, :], order, axis=1)
        for a, b in panels(hessian.shape[0], SLICE):
            hessian[:, a:b] = xp.take(hessian[:, a:b], order, axis=0)
        factors = factor(hessian, self.options.damping)
        # An error in a feature that is always zero costs nothing, so it has no say in the scales.
        alive = xp.take(diagonal, order, axis=0) > 0
        return Factored(order, factors, xp.where(alive, factors.variance, xp.zeros_like(factors.variance)))

    def _solve(
        self, weight: Array, site: Factored, args: QuantizationArgs, dtype: str, coupled: Sequence[Coupling]
    ) -> QuantizedTensor:
        xp = namespace(weight)
        features, position = weight.shape[1], site.position
        by_cost = self.options.observer == "hessian"
        search = args.model_copy(update={"observer": "mse"}) if by_cost else args
        cost = xp.take(site.importance, position, axis=0) if by_cost else None
        params = weight_params if self.options.signed_scales else numerics.weight_params
        grid = Grid(*params(weight, search, dtype, cost), args)
        size = args.group_size or features
        static = self.options.static_groups or args.granularity != "group"
        in_order = features - 1 - position  # the how-manieth each feature is taken
        stored = xp.arange(features, device=device(weight))
        group_of = (in_order if self.options.act_order and not static else stored) // size
        groups = [int(group) for group in xp.take(group_of, site.order, axis=0)]

        def choose(left: Array, first: int) -> tuple[Array, Array | None]:
            # One group, taken as a channel of its own.
            alone = search.model_copy(update={"granularity": "channel", "group_size": None})
            return params(left, alone, dtype, site.importance[first : first + size] if by_cost else None)

        rest = xp.empty((features, weight.shape[0]), dtype=weight.dtype, device=device(weight))
        for a, b in panels(weight.shape[0], SLICE):
            rest[:, a:b] = xp.take(transposed(weight[a:b, :]), site.order, axis=0)
        del weight
        free = None if static else choose
        codes = solve(rest, site.factors, groups, grid, self.options.block_size, free, self._sweeps(args), coupled)
        del rest
        return QuantizedTensor(
            transposed(xp.take(xp.permute_dims(codes, (1, 0)), position, axis=0), grid.code_dtype),
            *grid.params(),
            args,
            astype(group_of, "int32") if self.options.act_order and not static else None,
        )

    def _sweeps(self, args: QuantizationArgs) -> int:
        if self.options.sweeps is not None:
            return self.options.sweeps
        # Only sweeps use what ``guided`` knows, so it always has one.
        return 1 if self.options.guided or not args.number.is_integer or args.bits < 8 else 0


def _groups(layers: list[Layer]) -> list[list[Layer]]:
    """Layers of one site that are rows of one problem: those with the same numbers, up to ``ELEMENTS``."""
    groups: list[list[Layer]] = []
    for layer in sorted(layers, key=lambda n: (repr(n.args), n.dtype)):
        last = groups[-1] if groups else None
        # A scale of the whole tensor is not shared with another tensor's.
        apart = last is None or (last[0].args, last[0].dtype) != (layer.args, layer.dtype)
        if last is None or apart or layer.args.granularity == "tensor" or _elements([*last, layer]) > ELEMENTS:
            groups.append([layer])
        else:
            last.append(layer)
    return groups


def _elements(layers: list[Layer]) -> int:
    return sum(layer.shape[0] * layer.shape[1] for layer in layers)


def _joined(layers: list[Layer]) -> Array:
    weights = [layer.view() for layer in layers]
    return namespace(weights[0]).concat(weights, axis=0) if len(weights) > 1 else weights[0]


def _coupled(layers: list[Layer], by_layer: Mapping[str, Array]) -> list[Coupling]:
    """Which rows of the layers together mean something together."""
    found, start = [], 0
    for layer in layers:
        rows = slice(start, start + layer.shape[0])
        if layer.name in by_layer:
            found.append((rows, by_layer[layer.name]))
        start = rows.stop
    return found


def _divide(whole: QuantizedTensor, layers: list[Layer]) -> dict[str, QuantizedTensor]:
    """The rows of each layer."""
    if len(layers) == 1:
        return {layers[0].name: whole}
    found, start = {}, 0
    for layer in layers:
        rows = slice(start, start + layer.shape[0])
        zero_point = None if whole.zero_point is None else whole.zero_point[rows, :]
        found[layer.name] = QuantizedTensor(
            whole.codes[rows, :], whole.scale[rows, :], zero_point, whole.args, whole.group_index
        )
        start = rows.stop
    return found
