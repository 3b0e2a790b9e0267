"""The stage plugin: R1 over the residual stream, R2 over a head's values, R4 at inputs that nothing can fold into."""

from collections.abc import Mapping, Sequence

from pydantic import Field, field_validator

from gs_core import Algorithm, Block, FoldTransform, Layer, LayerInfo, LinearMap, SiteTransform, Strict, hookimpl
from gs_core.interfaces import Transform
from gs_hadamard.orders import largest_order
from gs_hadamard.rotations import rotation
from gs_schemas import QuantizationScheme


class Options(Strict):
    """
    r1: rotate the residual stream, through embeddings, norms and head. Costs nothing at run time.
    r2: rotate each head's values, from the layer that makes them to the one that takes them. Costs nothing.
    r3: rotate queries and keys after RoPE; not available here.
    r4: rotate, when the model runs, what enters the layers that no norm and no head's values feed (``down_proj``).
        Needs a checkpoint format that holds it, and an engine that computes it.
    seed: of the random signs in R1; ``None``: no signs.
    block_size: rotate R1 in blocks of that many features; ``None``: over all of them.
    r4_block_size: the same for R4. Engines that make the matrix themselves want a power of two.
    """

    r1: bool = True
    r2: bool = True
    r3: bool = False
    r4: bool = False
    seed: int | None = 0
    block_size: int | None = Field(None, gt=1)
    r4_block_size: int | None = Field(None, gt=1)

    @field_validator("r3")
    @classmethod
    def _no_r3(cls, r3: bool) -> bool:
        if r3:
            raise ValueError(
                "r3 rotates queries and keys after RoPE, which changes only what a quantized KV cache holds; no "
                "checkpoint format here can say it. Set r3: false"
            )
        return r3


class Hadamard(Algorithm):
    """Needs no data of its own; the model runs only so that what feeds what can be found, and each rotation proved."""

    Options = Options

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        size = self.options.r4_block_size
        if self.options.r4 and size and layer.shape[1] % size:
            return f"r4_block_size {size} does not divide its {layer.shape[1]} input features"
        return None

    def leaves_online(self, layer: LayerInfo, hidden: int) -> Mapping[str, str]:
        features, size = layer.shape[1], self.options.r4_block_size
        if not self.options.r4 or features == hidden or features % (size or 1):
            return {}
        kind = rotation(features, size).kind
        smaller = f", or r4_block_size: {features & -features}" if kind == "rotation" else ""
        return {kind: f"set r4: false for hadamard{smaller}"}

    def residual(self, features: int) -> LinearMap | None:
        if not self.options.r1 or not features:
            return None
        return rotation(features, self.options.block_size, self.options.seed)

    def remarks(self, layers: Sequence[LayerInfo]) -> list[str]:
        if not (self.options.r1 or self.options.r4):
            return []
        sizes = sorted({layer.shape[1] for layer in layers})
        return [
            f"no construction here gives a Hadamard matrix of order {size}: where that many features are rotated, "
            f"it is in blocks of {largest_order(size)}"
            for size in sizes
            if largest_order(size) != size
        ]

    @hookimpl
    def smooth(self, block: Block, layers: Sequence[Layer]) -> list[Transform]:
        folds = block.folds()
        found: list[Transform] = []
        if self.options.r2:
            found += [FoldTransform(fold, rotation(fold.head)) for fold in folds if fold.head > 1]
        if self.options.r4:
            found += [SiteTransform(site, self._online(block, site)) for site in _left(block, layers)]
        return found

    def _online(self, block: Block, site: str) -> LinearMap:
        return rotation(block.sites[site].features, self.options.r4_block_size)


def _left(block: Block, layers: Sequence[Layer]) -> list[str]:
    """Sites of these layers that a rotation of the stream or of heads does not reach."""
    reached = {s for fold in block.folds() if fold.head > 1 or fold.producer not in block.layers for s in fold.sites}
    return [site for site in dict.fromkeys(layer.site for layer in layers) if site not in reached]
