"""A block with everything that is learned of it: maps at sites, scales folded into producers, clipping of weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gs_core import Array, Block, ChannelScale, Fold, FoldTransform, Layer, LinearMap, SiteTransform, numerics
from gs_core.interfaces import Transform
from gs_flatquant.matrices import Direct, Learned, kronecker
from gs_flatquant.rounding import quantized
from gs_schemas import QuantizationArgs

SMALLEST = 1e-5


@dataclass
class SiteMap:
    """What is learned of one site: activations go through ``left ⊗ right``, then are quantized.

    right: a whole number is the size of an identity. values: the map of each head's values, which takes the place of
    the identity when the weights of the layer that makes them, ``producer``, are rewritten. clip: the logit of how much
    of a token's range is kept; None where all is.
    """

    left: Learned | Direct
    right: Learned | Direct | int
    values: Learned | Direct | None = None
    producer: str = ""
    clip: torch.Tensor | None = None

    def matrices(self) -> list[Learned | Direct]:
        return [m for m in (self.left, self.right, self.values) if m is not None and not isinstance(m, int)]

    def right_both(self) -> tuple[torch.Tensor | int, torch.Tensor | int]:
        inner = self.values if self.values is not None else self.right
        return (inner, inner) if isinstance(inner, int) else inner.both()

    def keep(self) -> torch.Tensor | float:
        return 1.0 if self.clip is None else torch.sigmoid(self.clip)

    def transform(self, site: str, dtype: str) -> SiteTransform:
        """What remains to be computed when the model runs, of values that ``dtype`` holds: engines keep it so."""

        def stored(matrix: Learned | Direct | int) -> torch.Tensor | int:
            if isinstance(matrix, int):
                return matrix
            return matrix.both()[0].detach().to(getattr(torch, dtype)).float()

        return SiteTransform(site, LinearMap((stored(self.left), stored(self.right)), keep=float(self.keep())))


@dataclass
class Mapped:
    """The block as a function of what is learned. ``clips``: of each layer the logits of the fractions of its range
    that are kept below and above zero, ``(2, rows, groups)``."""

    block: Block
    layers: Sequence[Layer]
    sites: dict[str, SiteMap]
    scales: list[tuple[Fold, torch.Tensor]]
    clips: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._weights = {layer.name: layer.weight() for layer in self.layers}

    # --- what is learned -------------------------------------------------------------------------------------

    def slow(self) -> Iterator[torch.Tensor]:
        """Matrices and scales."""
        for site in self.sites.values():
            for matrix in site.matrices():
                yield from matrix.parameters()
        for _, scale in self.scales:
            yield scale

    def fast(self) -> Iterator[torch.Tensor]:
        """Clipping."""
        yield from self.clips.values()
        yield from (site.clip for site in self.sites.values() if site.clip is not None)

    # --- forwards --------------------------------------------------------------------------------------------

    def compute(self) -> "Computed":
        """Everything that does not depend on the activations, once for a step."""
        both = {name: (site.left.both(), site.right_both()) for name, site in self.sites.items()}
        keeps = {name: site.keep() for name, site in self.sites.items()}
        scales = {site: fold.expand(scale) for fold, scale in self.scales for site in fold.sites}
        weights = {}
        made = {site.producer: name for name, site in self.sites.items() if site.values is not None}
        for layer in self.layers:
            weight = self._weights[layer.name]
            if layer.site in scales:
                weight = weight / scales[layer.site]
            if layer.site in both:
                (_, left), (_, right) = both[layer.site]
                weight = kronecker(weight, left, right)
            if layer.name in made:
                values = self.sites[made[layer.name]].values
                assert values is not None
                forth, back = values.both()
                # Quantized as it will be written, but taken back: what follows is in the model's own terms.
                weight = quantized(_rows(weight, forth), layer.args, *self.kept(layer))
                weights[layer.name] = _rows(weight, back.T)
            else:
                weights[layer.name] = quantized(weight, layer.args, *self.kept(layer))
        return Computed(self, both, keeps, scales, weights)

    def kept(self, layer: Layer) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        clip = self.clips.get(layer.name)
        if clip is None:
            return 1.0, 1.0
        low, high = torch.sigmoid(clip)
        return low, high

    # --- the result ------------------------------------------------------------------------------------------

    def transforms(self) -> list[Transform]:
        """As the block applies them: what folds comes before what is computed at run time."""
        folded: list[Transform] = [ChannelScale(fold, 1.0 / scale.detach()) for fold, scale in self.scales]
        online: list[Transform] = []
        dtypes = {layer.site: layer.dtype for layer in self.layers}
        for name, site in self.sites.items():
            if site.values is not None:
                fold = next(f for f in self.block.folds() if f.producer == site.producer and name in f.sites)
                folded.append(FoldTransform(fold, LinearMap((site.values.both()[0].detach(),))))
            online.append(site.transform(name, dtypes[name]))
        return folded + online


@dataclass
class Computed:
    """One step's matrices and weights."""

    mapped: Mapped
    both: Mapping[str, tuple]
    keeps: Mapping[str, torch.Tensor | float]
    scales: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        by_site: dict[str, Layer] = {layer.site: layer for layer in self.mapped.layers}
        self._args = {site: layer.scheme.inputs for site, layer in by_site.items()}

    def on_site(self, name: str, x: Array) -> Array | None:
        """Activations as they are mapped and quantized when the model runs; None at other sites than our layers'."""
        if name not in self._args:
            return None
        if name in self.scales:
            x = x * self.scales[name]
        if name in self.both:
            (left, _), (right, _) = self.both[name]
            x = kronecker(x, left, right)
        args, keep = self._args[name], self.keeps.get(name, 1.0)
        return x if args is None else quantized(x, args, keep, keep)


def _rows(weight: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Send output channels through a matrix, as many neighbours at a time as it is large."""
    return (weight.T.reshape(weight.shape[1], -1, len(matrix)) @ matrix).reshape(weight.shape[1], -1).T


def smoothquant_style(weights: Sequence[torch.Tensor], activation: torch.Tensor, alpha: float) -> torch.Tensor:
    """The scale to start from: ``max|W|^(1 - alpha) / max|X|^alpha`` of each feature."""
    weight = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp(min=SMALLEST)
    return (weight ** (1 - alpha) / activation.clamp(min=SMALLEST) ** alpha).clamp(min=SMALLEST)


def clip_start(args: QuantizationArgs) -> float:
    """The logit that clipping starts from: 4 for four bits, as the authors have it, which keeps 0.982 of the range.
    That takes an eighth of a step off the largest value, and so does its like for other widths."""
    lost = (1 - 1 / (1 + math.exp(-4.0))) * 15 / (args.number.maximum - args.number.minimum)
    return math.log(1 / lost - 1)


def clip_logits(layer: Layer) -> torch.Tensor:
    """Where clipping of a weight starts, ``(2, rows, groups)``."""
    weight = layer.view()
    rows, groups = numerics.split(weight, layer.args).shape[:2]
    return torch.full((2, rows, groups), clip_start(layer.args), device=weight.device)
