"""The stage plugin: a Hessian for each site, and the layers that share it solved together."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from gs_core import (
    Accumulator,
    Algorithm,
    Array,
    Layer,
    LayerInfo,
    QuantizedTensor,
    Site,
    Strict,
    hookimpl,
    namespace,
    numerics,
)
from gs_core.arrays import astype
from gs_gptq.solver import Grid, factor, solve
from gs_schemas import QuantizationArgs, QuantizationScheme


class Options(Strict):
    """
    act_order: take the features with the largest activations first, while there is the most left to compensate.
    static_groups: choose every scale before the first feature is rounded, in the order the features are stored in;
        without it scales follow the feedback, and with ``act_order`` groups are no longer neighbours.
    damping: what is added to the Hessian's diagonal, relative to its mean.
    block_size: features between two matrix products of feedback.
    observer: how scales are chosen: the scheme's own, or ``hessian``: the clipping that costs the least output
        error, each feature weighed by its conditional variance.
    """

    act_order: bool = True
    static_groups: bool = True
    damping: float = Field(0.01, ge=0.0, le=1.0)
    block_size: int = Field(128, gt=0)
    observer: str = Field("hessian", pattern="^(scheme|hessian)$")


class Hessian(Accumulator):
    """Second moments of a site's activations, ``mean(x xᵀ)``, float32 ``(features, features)``."""

    total: Array = None
    tokens = 0

    def update(self, x: Array) -> None:
        xp = namespace(x)
        product = xp.permute_dims(x, (1, 0)) @ x
        self.total = product if self.total is None else self.total + product
        self.tokens += x.shape[0]

    def rescale(self, scale: Array) -> bool:
        self.total = self.total / (scale[:, None] * scale[None, :])
        return True

    def result(self) -> Array:
        return self.total / self.tokens


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

    @hookimpl
    def observe(self, site: Site) -> Accumulator:
        return Hessian()

    @hookimpl
    def quantize(self, layers: Sequence[Layer], observed: Mapping[str, Any]) -> dict[str, QuantizedTensor]:
        together: dict[tuple[str, QuantizationArgs, str], list[Layer]] = {}
        for layer in layers:
            together.setdefault((layer.site, layer.args, layer.dtype), []).append(layer)
        found: dict[str, QuantizedTensor] = {}
        for (site, args, dtype), group in together.items():
            if site in observed and args.granularity != "tensor":
                found |= self._together(group, observed[site], args, dtype)
            else:
                found |= {layer.name: self._alone(layer, observed.get(site), args, dtype) for layer in group}
        return found

    def _alone(self, layer: Layer, hessian: Array | None, args: QuantizationArgs, dtype: str) -> QuantizedTensor:
        if hessian is None:
            return numerics.quantize_weight(layer.weight(), args, dtype)
        return self._solve(layer.weight(), hessian, args, dtype)

    def _together(
        self, layers: list[Layer], hessian: Array, args: QuantizationArgs, dtype: str
    ) -> dict[str, QuantizedTensor]:
        """Rows are independent given the Hessian, so layers that share a site are rows of one problem."""
        weights = [layer.weight() for layer in layers]
        xp = namespace(weights[0])
        whole = self._solve(xp.concat(weights, axis=0) if len(weights) > 1 else weights[0], hessian, args, dtype)
        found, start = {}, 0
        for layer in layers:
            stop = start + layer.shape[0]
            zero_point = None if whole.zero_point is None else whole.zero_point[start:stop, :]
            found[layer.name] = QuantizedTensor(
                whole.codes[start:stop, :], whole.scale[start:stop, :], zero_point, args, whole.group_index
            )
            start = stop
        return found

    def _solve(self, weight: Array, hessian: Array, args: QuantizationArgs, dtype: str) -> QuantizedTensor:
        xp = namespace(weight)
        options = self.options
        features = weight.shape[1]
        diagonal = xp.linalg.diagonal(hessian)
        taken = natural = xp.arange(features, device=weight.device)
        if options.act_order:
            taken = xp.argsort(-diagonal, stable=True)
        back = xp.argsort(taken)
        hessian = xp.take(xp.take(hessian, taken, axis=0), taken, axis=1)
        feedback, variance, _ = factor(hessian, options.damping)
        # An error in a feature that is always zero costs nothing, so it has no say in the scales.
        variance = xp.where(xp.take(diagonal, taken, axis=0) > 0, variance, xp.zeros_like(variance))
        importance = xp.take(variance, back, axis=0) if options.observer == "hessian" else None
        search = args if importance is None else args.model_copy(update={"observer": "mse"})
        scale, zero_point = numerics.weight_params(weight, search, dtype, importance)
        size = args.group_size or features
        static = options.static_groups or args.granularity != "group"
        groups = [int(feature) // size for feature in (taken if static else natural)]
        grid = Grid(scale, zero_point, args)

        def choose(now: Array, first: int) -> tuple[Array, Array | None]:
            # One group, taken as a channel of its own.
            alone = search.model_copy(update={"granularity": "channel", "group_size": None})
            here = None if importance is None else variance[first : first + size]
            return numerics.weight_params(now, alone, dtype, here)

        ordered = xp.take(weight, taken, axis=1)
        codes = solve(ordered, feedback, groups, grid, options.block_size, None if static else choose)
        if not static:
            scale = astype(xp.permute_dims(grid.scale, (1, 0)), numerics.scale_dtype(args, dtype))
            zero_point = None if grid.zero_point is None else xp.permute_dims(grid.zero_point, (1, 0))
        code_dtype = numerics.code_dtype(args)
        moved = not static and options.act_order
        index = astype(back // size, "int32") if moved else None
        return QuantizedTensor(
            astype(xp.take(codes, back, axis=1), code_dtype),
            scale,
            None if zero_point is None else astype(zero_point, code_dtype),
            args,
            index,
        )
