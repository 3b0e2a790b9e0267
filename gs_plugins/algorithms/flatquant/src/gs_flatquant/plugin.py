"""The stage plugin: which site gets which map, and how weights are quantized where nothing follows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from gs_core import (
    Accumulator,
    Algorithm,
    Block,
    Data,
    Layer,
    LayerInfo,
    Needs,
    QuantizedTensor,
    Site,
    Strict,
    hookimpl,
    numerics,
)
from gs_core.hookspecs import Record
from gs_core.interfaces import Transform
from gs_core.observers import ChannelMaxima
from gs_flatquant.factors import pair
from gs_schemas import QuantizationScheme

CURVE = 20
"""Points of a loss curve in the report."""


class Options(Strict):
    """
    epochs: passes over the calibration samples in each block. cali_bsz: samples in one step. flat_lr: where the rate
        of matrices and scales starts; clipping learns ten times as fast.
    cali_trans: learn the maps, and not only clipping.
    add_diag: learn a scale of each channel too, folded into what produces it. diag_alpha: how much of the
        activations' spread it takes to start with (SmoothQuant's alpha).
    lwc: learn how much of its range each scale of a weight keeps. lac: the same for the activations at each site that
        is mapped.
    o_trans: map what enters the attention's output layer: across heads at run time, within a head folded; where
        the checkpoint format cannot say that, as any other input.
    down_trans: map the inputs that no norm produces (``down_proj``).
    direct_inv: learn the matrices as they are and invert them, in place of rotations and a diagonal.
    max_factor, factor_multiple, tensor_parallel: limits of the kernels that compute the maps: the largest factor of a
        pair, what the right one must be a multiple of, and among how many devices the features are divided that no
        norm produces. CANN 8.5 takes 256 and 8, earlier ones 128.
    seed: of the rotations to start from, and of the order of samples.
    save_matrices: a folder to write what is learned to, a file for each block; load_matrices: such a folder, to take
        it from instead of learning.
    """

    epochs: int = Field(15, ge=0)
    cali_bsz: int = Field(4, gt=0)
    flat_lr: float = Field(5e-3, gt=0.0)
    cali_trans: bool = True
    add_diag: bool = True
    diag_alpha: float = Field(0.3, ge=0.0, le=1.0)
    lwc: bool = True
    lac: bool = False
    o_trans: bool = True
    down_trans: bool = True
    direct_inv: bool = False
    max_factor: int = Field(256, gt=1)
    factor_multiple: int = Field(1, gt=0)
    tensor_parallel: int = Field(1, gt=0)
    seed: int = Field(0, ge=0)
    save_matrices: str | None = None
    load_matrices: str | None = None

    def pair(self, features: int, parts: int = 1) -> tuple[int, int]:
        """The factors of so many features that are divided among so many devices. Raises ``ValueError`` without any."""
        return pair(features, self.max_factor, self.factor_multiple, parts)


class FlatQuant(Algorithm):
    """Last in a recipe it rounds to nearest within the ranges it learned; before another that quantizes, it leaves
    the mapped weights to that. A site that no token reached gets no map."""

    Options = Options

    def __init__(self, options: Any = None):
        super().__init__(options)
        self._clips: dict[str, Any] = {}

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        for args in (scheme.weights, scheme.inputs):
            if args is not None and not args.number.is_integer:
                return f"maps are learned for integers, not for '{args.format}'; use hadamard"
        try:
            for parts in (1, self.options.tensor_parallel):
                self.options.pair(layer.shape[1], parts)
        except ValueError as error:
            return str(error)
        return None

    def needs(self, scheme: QuantizationScheme) -> Needs:
        learns = bool(self.options.epochs) and not self.options.load_matrices
        return Needs(data=True, gradient=learns, float_stream=learns)

    def leaves_online(self, layer: LayerInfo, hidden: int) -> Mapping[str, str]:
        kind = "clipped" if self.options.lac else "kronecker"
        return {kind: "set format: ascend, or use hadamard, whose r1 and r2 leave nothing to be computed"}

    def remarks(self, layers: Sequence[LayerInfo]) -> list[str]:
        sizes = sorted({layer.shape[1] for layer in layers})
        blocks = {size: self.options.pair(size) for size in sizes}
        return [
            f"{size} features are mapped in blocks of {left * right}, {left} · {right}: no larger pair is allowed"
            for size, (left, right) in blocks.items()
            if left * right != size
        ]

    @hookimpl
    def observe(self, site: Site) -> Accumulator:
        return ChannelMaxima()

    @hookimpl
    def smooth(
        self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any], data: Data, record: Record
    ) -> list[Transform]:
        from gs_flatquant.building import build
        from gs_flatquant.learning import Schedule, learn
        from gs_flatquant.saved import load, save

        chosen = self.options
        if chosen.load_matrices:
            transforms, self._clips = load(Path(chosen.load_matrices), block)
            return transforms
        mapped, refused = build(block, layers, observed, chosen, data.refusal)
        schedule = Schedule(chosen.epochs, chosen.cali_bsz, chosen.flat_lr, (chosen.seed, block.index))
        if chosen.epochs:
            losses = learn(mapped, data, schedule, chosen.cali_trans)
            every = -(-len(losses) // CURVE)
            record(loss=[float(f"{loss:.4g}") for loss in losses[::every]], last=float(f"{losses[-1]:.4g}"))
        transforms, self._clips = mapped.transforms(), mapped.clips
        if chosen.save_matrices:
            save(Path(chosen.save_matrices), block, transforms, mapped.clips)
        return transforms + refused  # the line drops those, and the report says why

    @hookimpl
    def quantize(self, layers: Sequence[Layer]) -> dict[str, QuantizedTensor]:
        return {layer.name: self._round(layer) for layer in layers}

    def _round(self, layer: Layer) -> QuantizedTensor:
        weight = layer.view()
        if layer.name not in self._clips:
            return numerics.quantize_weight(weight, layer.args, layer.dtype)
        keep_low, keep_high = self._clips[layer.name].to(weight.device).sigmoid()
        low, high = numerics.minmax(numerics.split(weight, layer.args))
        dtype = numerics.scale_dtype(layer.args, layer.dtype)
        scale, zero_point = numerics.scale_from_range(low * keep_low, high * keep_high, layer.args, dtype)
        return numerics.quantize_with(weight, scale, zero_point, layer.args)
