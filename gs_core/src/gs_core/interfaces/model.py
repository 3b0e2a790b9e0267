"""What a model is made of: sites, layers, blocks, folds, and the transforms that rewrite them.

Shapes: a weight is always ``(out_features, in_features)``; an activation at a site is ``(tokens, features)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gs_core.arrays import Array, RawTensor, device, namespace
from gs_core.linear_map import LinearMap
from gs_core.storage import Tensor
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
class Fold:
    """A place where a per-channel scale disappears: dividing a producer's output channels by ``s`` scales the
    listed sites, all of them, by ``1/s[index]``.

    producer: the norm or layer whose parameters absorb the division.
    sites: every site the producer reaches.
    channels: how many scales are free.
    index: int ``(features,)``, the producer channel behind each site channel (``None``: one to one). With
        grouped-query attention several site channels share one.
    head: how many neighbouring channels may be mixed with one another, each such group alike, and not only scaled:
        the channels of a head's values. 1 where nothing may be mixed.
    shifts: whether a constant can be taken from each channel, too: the producer has a bias that does it, and every
        layer behind has one that makes up for it.
    """

    producer: str
    sites: tuple[str, ...]
    channels: int
    index: np.ndarray | None = None
    head: int = 1
    shifts: bool = False

    def expand(self, scale: Array) -> Array:
        """``(channels,)`` to ``(features,)``."""
        if self.index is None:
            return scale
        xp = namespace(scale)
        return xp.take(scale, xp.asarray(self.index, device=device(scale)), axis=0)

    def reduce_max(self, arrays: Sequence[Array]) -> Array:
        """The largest of several ``(features,)`` arrays for each free channel, ``(channels,)``."""
        xp = namespace(arrays[0])
        largest = arrays[0]
        for array in arrays[1:]:
            largest = xp.maximum(largest, array)
        if self.index is None:
            return largest
        order = xp.asarray(np.argsort(self.index, kind="stable"), device=device(largest))
        return xp.max(xp.reshape(xp.take(largest, order, axis=0), (self.channels, -1)), axis=1)


@dataclass(frozen=True)
class ChannelScale:
    """A transform: activations of ``fold.sites`` become ``(x - shift) / scale``, ``(channels,)`` each. The weights of
    their layers are multiplied by ``scale``, and what these make of ``shift`` is added to their biases.

    Raises ``ValueError`` for a shift where the fold has none.
    """

    fold: Fold
    scale: Array
    shift: Array | None = None

    def __post_init__(self) -> None:
        if self.shift is not None and not self.fold.shifts:
            raise ValueError(f"{self.where}: not all of them have biases that could absorb a shift")

    @property
    def sites(self) -> tuple[str, ...]:
        return self.fold.sites

    @property
    def where(self) -> str:
        return f"{self.fold.producer} → {', '.join(self.fold.sites[:3])}"


@dataclass(frozen=True)
class FoldTransform:
    """A transform: the producer's output channels go through ``map``, whose ``block`` divides ``fold.head``, and so
    the activations of ``fold.sites`` do; the weights of their layers go through its inverse transpose."""

    fold: Fold
    map: LinearMap

    @property
    def sites(self) -> tuple[str, ...]:
        return self.fold.sites

    @property
    def where(self) -> str:
        return f"{self.fold.producer} → {', '.join(self.fold.sites[:3])}"


@dataclass(frozen=True)
class SiteTransform:
    """A transform that is computed when the model runs: activations of ``site`` go through ``map``, the weights of
    its layers through its inverse transpose. The checkpoint format must hold maps of its ``kind``.

    A cached key feeds no weights but is multiplied by queries, and those go through the inverse transpose; or, which
    is the same product, what is read back of the cache goes back through the map (``through``).
    """

    site: str
    map: LinearMap

    def objection(self, site: Site) -> str | None:
        """Why the site that it names cannot take it, or ``None``."""
        if site.kind not in ("input", "key"):
            return f"inputs of layers and keys after their rotation can be mapped, not {site.name}"
        if site.heads and (site.features // site.heads) % self.map.block:
            return f"its factors mix {self.map.block} channels, a head has {site.features // site.heads}"
        return self.map.objection(site.features)

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    @property
    def where(self) -> str:
        return self.site


Transform = ChannelScale | FoldTransform | SiteTransform
Batch = tuple[np.ndarray, "Mapping[str, RawTensor] | None"]
"""Token ids, int64 ``(batch, seq_len)``, and what the block before returned for them (None for the first)."""
OnSite = Callable[[str, Array], "Array | None"]
"""Called with a site's name and its activation; what it returns, unless None, takes the activation's place."""


def through(online: Mapping[str, LinearMap], sites: Mapping[str, Site], on_site: OnSite | None = None) -> OnSite | None:
    """An ``on_site`` that sends activations through their site's map before ``on_site`` sees them. What attention
    reads back of a cache has gone back through the map: a block's queries stay as they are."""
    if not online:
        return on_site

    def replace(name: str, x: Array) -> Array | None:
        if name not in online:
            return None if on_site is None else on_site(name, x)
        mapped = online[name].apply(x)
        seen = None if on_site is None else on_site(name, mapped)
        taken = mapped if seen is None else seen
        return taken if sites[name].kind == "input" else online[name].undo(taken)

    return replace


class Block(ABC):
    """A decoder block: loaded, calibrated, quantized, written and forgotten.

    ``layers`` and ``sites`` are by name, in the order of execution.
    """

    name: str
    index: int
    layers: dict[str, Layer]
    sites: dict[str, Site]
    online: Mapping[str, LinearMap] = {}
    """What activations go through when the block runs, by site: set by ``apply``, and by whoever opens a checkpoint
    whose weights are meant for it. Replaced, never written into."""
    exact: bool = True
    """Whether ``run`` has to multiply in float32; where not, it may in the dtype that the weights are stored in."""

    @contextmanager
    def computing(self, exact: bool) -> Iterator[None]:
        """Set ``exact`` for a while."""
        before, self.exact = self.exact, exact
        try:
            yield
        finally:
            self.exact = before

    @abstractmethod
    def run(
        self,
        tokens: np.ndarray,
        previous: Mapping[str, RawTensor] | None,
        on_site: OnSite | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Compute the block on one batch. ``on_site`` sees, and replaces, what the site's map (``online``) made.

        tokens: int64 ``(batch, seq_len)``. previous: what the block before returned for the same batch
        (``None`` for the first). weights: ``(out, in)`` float32 in place of layers' own, by layer name; when they
        are given, even none, automatic differentiation follows the run wherever ``Model.differentiates``.
        Returns named arrays that ``run`` of the next block understands; ``hidden`` is the residual stream,
        ``(batch, seq_len, hidden)``.
        """

    def folds(self) -> Sequence[Fold]:
        """Where scales can be folded, found by watching the block run. Empty when it was opened not to run."""
        return ()

    def apply(self, transform: Transform) -> tuple[Transform, Callable[[], None]]:
        """Rewrite producer and consumers in place; returns the transform that was really applied (a producer's
        stored dtype may round it) and what takes it back. Raises ``ValueError`` when the producer cannot."""
        raise ValueError(f"{self.name}: this adapter folds no transforms")

    @abstractmethod
    def rest(self, quantized: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the block by checkpoint name, in the source's dtype, but the weights of the layers
        named in ``quantized``: norms, biases, and the weights of layers that stay in floating point."""


class Model(ABC):
    """An opened model: what it is made of, block by block, and what lies outside the blocks."""

    name: str
    layers: list[LayerInfo]
    warnings: Sequence[str] = ()
    """What a user should know about how it was opened."""
    differentiates: bool = False
    """Whether its blocks compute with torch tensors that autograd can follow."""
    kept: dict[str, str]
    """Modules that could be mistaken for layers but stay in floating point: name, and why."""
    caches: Sequence[CacheInfo] = ()
    """What its attention modules cache, in the order of execution."""
    uncached: str = "its adapter does not tell what attention caches"
    """Why there are no caches, where there are none."""
    hidden: int = 0
    """How many features the residual stream has; 0 where the adapter cannot rotate it."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[str]:
        """Names of the decoder blocks in order."""

    @abstractmethod
    def block(self, index: int, probe: Batch | None) -> Block:
        """Load one block. ``probe`` is a batch to try things on; None says that the block will never run, so
        each weight is read only when asked for."""

    @abstractmethod
    def rest(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor outside the blocks, by checkpoint name, to be streamed from file to file."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The content of config.json."""

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The other files of the source folder that an engine wants beside the weights."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the weights or the configuration do."""

    @abstractmethod
    def tokenize(self, text: str) -> np.ndarray:
        """Token ids, int64 ``(n,)``, without special tokens. Raises ``CalibrationError`` without a tokenizer."""

    @abstractmethod
    def vocabulary(self) -> int:
        """How many token ids there are."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all weights of the source."""

    def max_tokens(self) -> int | None:
        """The longest sequence the model accepts, or ``None`` when it does not say."""
        return None

    def rotate(self, rotation: LinearMap) -> None:
        """Rotate the residual stream, once, while planning: what a block opened from now on takes and returns as
        ``hidden`` is ``rotation.apply`` of what it was. The weights of norms on the stream move into the layers they
        feed; embeddings, head and ``config`` follow when they are written. Reads no weights. Each block is proved
        when it is opened: it raises ``CheckpointError`` where its float function would change.

        Raises ``ValueError`` saying why the stream of this model cannot be rotated.
        """
        raise ValueError("this adapter rotates no residual stream")

    @abstractmethod
    def losses(self, tokens: np.ndarray, last: Mapping[str, RawTensor]) -> np.ndarray:
        """Next-token cross entropy in nats, float64 ``(batch, seq_len - 1)``, from the last block's output."""


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
