"""The stage plugin: R1 over the residual stream, R2 over a head's values, R3 over a head's cached keys, R4 at inputs
that nothing can fold into."""

from collections.abc import Mapping, Sequence

from pydantic import Field

from gs_core import Algorithm, Block, FoldTransform, Layer, LayerInfo, LinearMap, Site, SiteTransform, Strict, hookimpl
from gs_core.interfaces import Transform
from gs_hadamard.orders import largest_order
from gs_hadamard.rotations import rotation
from gs_schemas import QuantizationScheme


class Options(Strict):
    """
    r1: rotate the residual stream, through embeddings, norms and head. Costs nothing at run time. If the
        stream of a model cannot be rotated, the plan leaves the rotation out and says so. If the recipe has
        ``r1: true``, the plan refuses the model instead.
    r2: rotate each head's values, from the layer that makes them to the one that takes them. Costs nothing.
    r3: rotate, when the model runs, each head's queries and keys after RoPE, which changes what a quantized KV cache
        holds and nothing else: in blocks of the largest power of two that divides a head. Needs a checkpoint format
        that holds it, and an engine that computes it.
    r4: rotate, when the model runs, what enters the layers that no norm and no head's values feed (``down_proj``).
        Needs a checkpoint format that holds it, and an engine that computes it.
    seed: of the random signs in R1; ``None``: no signs.
    block_size: rotate R1 in blocks of that many features; ``None``: over all of them.
    r4_block_size: the same for R4; ``None``: the largest power of two that divides them, whose matrix an engine makes
        for itself. Any other order needs a format that stores matrices.
    """

    r1: bool = True
    r2: bool = True
    r3: bool = False
    r4: bool = False
    seed: int | None = 0
    block_size: int | None = Field(None, gt=1)
    r4_block_size: int | None = Field(None, gt=1)


class Hadamard(Algorithm):
    """Uses no statistics. Calibration data is needed to find the layers that a site feeds, and to verify rotations."""

    Options = Options

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        size = self.options.r4_block_size
        if self.options.r4 and size and layer.shape[1] % size:
            return f"r4_block_size {size} does not divide its {layer.shape[1]} input features"
        return None

    def leaves_online(self, layer: LayerInfo, hidden: int) -> Mapping[str, str]:
        features = layer.shape[1]
        if not self.options.r4 or features == hidden or features % (self.options.r4_block_size or 1):
            return {}
        return {self._r4(features).kind: "for hadamard leave out r4_block_size, or set r4: false"}

    @property
    def maps_keys(self) -> Mapping[str, str]:
        return {"hadamard": "for hadamard set r3: false"} if self.options.r3 else {}

    @property
    def residual_required(self) -> bool:
        return "r1" in self.options.model_fields_set

    def residual(self, features: int) -> LinearMap | None:
        if not self.options.r1 or not features:
            return None
        return rotation(features, self.options.block_size, self.options.seed)

    def remarks(self, layers: Sequence[LayerInfo]) -> list[str]:
        found = []
        for features in sorted({layer.shape[1] for layer in layers}):
            asked = self.options.block_size or features
            if self.options.r1 and largest_order(asked) != asked:
                found.append(
                    f"no construction here gives a Hadamard matrix of order {asked}; a residual stream of that many "
                    f"features is rotated in blocks of {largest_order(asked)}"
                )
            if self.options.r4 and features % (self.options.r4_block_size or 1) == 0 and self._r4(features).block < 32:
                found.append(f"r4 rotates {features} features in blocks of no more than {self._r4(features).block}")
        return found

    @hookimpl
    def smooth(self, block: Block, layers: Sequence[Layer], keys: Sequence[Site]) -> list[Transform]:
        folds = block.folds()
        found: list[Transform] = []
        if self.options.r2:
            found += [FoldTransform(fold, rotation(fold.head)) for fold in folds if fold.head > 1]
        if self.options.r3:
            sizes = {site.name: site.features // site.heads for site in keys}
            found += [SiteTransform(name, rotation(size & -size)) for name, size in sizes.items()]
        if self.options.r4:
            reached = {s for f in folds if f.head > 1 or f.producer not in block.layers for s in f.sites}
            left = [site for site in dict.fromkeys(layer.site for layer in layers) if site not in reached]
            found += [SiteTransform(site, self._r4(block.sites[site].features)) for site in left]
        return found

    def _r4(self, features: int) -> LinearMap:
        return rotation(features, self.options.r4_block_size or features & -features)
