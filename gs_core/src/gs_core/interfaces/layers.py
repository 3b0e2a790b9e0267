"""What of a model can be quantized: layers and the sites that feed them, caches, and the numbers each is given.

Shapes: a weight is always ``(out_features, in_features)``; an activation at a site is ``(tokens, features)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gs_core.arrays import Array
from gs_core.linear_map import LinearMap
from gs_schemas import QuantizationArgs, QuantizationScheme


@dataclass(frozen=True)
class LayerInfo:
    """One weight that can be quantized, known before any weight is read.

    ``name`` is the layer's full name as the checkpoint spells it, without ``.weight``; ``dtype`` is the name of
    the dtype it is stored in; ``alias`` is the name of its module where that is spelt otherwise; ``transposed`` says
    that its framework keeps it ``(in_features, out_features)``, whatever ``shape``, which is ``(out, in)``, says.
    """

    name: str
    block: int
    shape: tuple[int, int]
    site: str
    dtype: str
    alias: str = ""
    transposed: bool = False


class Layer(ABC):
    """A weight of a loaded block, in float32, as ``(out_features, in_features)``."""

    def __init__(self, info: LayerInfo):
        self.info = info
        self.scheme = QuantizationScheme()

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def shape(self) -> tuple[int, int]:
        return self.info.shape

    @property
    def site(self) -> str:
        return self.info.site

    @property
    def dtype(self) -> str:
        """The dtype name the checkpoint stores this weight in (scales follow it)."""
        return self.info.dtype

    @property
    def args(self) -> QuantizationArgs:
        """The numbers for its weight (``scheme.weights``)."""
        assert self.scheme.weights is not None, f"{self.name} stays in floating point"
        return self.scheme.weights

    @abstractmethod
    def weight(self) -> Array:
        """A float32 copy of the weight, the caller's to change."""

    def view(self) -> Array:
        """The weight in float32, to be read while the block is as it is: no copy where an adapter can do without."""
        return self.weight()

    @abstractmethod
    def set_weight(self, weight: Array) -> None:
        """Make the block compute with this weight from now on."""


SiteKind = Literal["input", "key", "unrotated_key", "value"]
"""What flows through a site: the input of layers, or what attention caches. A key is cached after its position was
rotated into it; some engines quantize it before that, as it leaves the layer that makes it."""


@dataclass(frozen=True)
class Site:
    """One activation tensor and the layers it feeds.

    A site of a cache feeds no layers; its features are those of all its ``heads``, head by head, and ``dtype`` is the
    name of the dtype that the model is stored in around it (scales follow it).
    """

    name: str
    features: int
    layers: tuple[str, ...]
    kind: SiteKind = "input"
    heads: int = 0
    dtype: str = ""


@dataclass(frozen=True)
class CacheInfo:
    """The keys and values that one attention module caches, known before any weight is read.

    name: the module's full name as the checkpoint spells it (``model.layers.0.self_attn``). sites: its sites in
    the order of execution, at most one of each kind. rotated_only: why its keys cannot be seen before their rotation,
    where ``sites`` lacks that. alias: as in ``LayerInfo``.
    """

    name: str
    block: int
    sites: tuple[Site, ...]
    rotated_only: str = ""
    alias: str = ""


@dataclass(frozen=True)
class StaticInput:
    """Parameters of a statically quantized activation, one element each: the scale in the dtype it is stored in,
    the zero point in float32. Those of a cache have one element for each head or channel where its args say so."""

    scale: Array
    zero_point: Array | None = None


@dataclass(frozen=True)
class LayerNumbers:
    """How a layer of a quantized checkpoint is to be computed."""

    scheme: QuantizationScheme
    inputs: StaticInput | None = None
    online: LinearMap | None = None
    """What its input goes through before it is quantized; the stored weight is meant for that."""


@dataclass(frozen=True)
class CacheNumbers:
    """How an attention module's cache is to be computed: the args, and for each kind of site that is quantized its
    static parameters (``None`` when they are found at run time)."""

    args: QuantizationArgs
    static: Mapping[SiteKind, StaticInput | None]
    online: LinearMap | None = None
    """What the keys of each head go through before they are quantized; queries go through its inverse transpose."""
