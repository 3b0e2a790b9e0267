"""What crosses a hook: sites, layers, blocks and models, and what plugins are made of.

Shapes: a weight is always ``(out_features, in_features)``; an activation at a site is ``(tokens, features)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from gs_core.arrays import Array, RawTensor, device, namespace
from gs_core.linear_map import LinearMap
from gs_core.quantized import QuantizedTensor
from gs_core.storage import Checkpoint, Tensor
from gs_schemas import QuantizationArgs, QuantizationScheme, Strict

# --- what a model is made of ---------------------------------------------------------------------------------


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
    its layers through its inverse transpose. The checkpoint format must hold maps of its ``kind``."""

    site: str
    map: LinearMap

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


def through(online: Mapping[str, LinearMap], on_site: OnSite | None) -> OnSite | None:
    """An ``on_site`` that sends activations through their site's map before ``on_site`` sees them."""
    if not online:
        return on_site

    def replace(name: str, x: Array) -> Array | None:
        mapped = online[name].apply(x) if name in online else None
        seen = None if on_site is None else on_site(name, x if mapped is None else mapped)
        return mapped if seen is None else seen

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


# --- what plugins are made of --------------------------------------------------------------------------------


class Accumulator(ABC):
    """Collects one statistic of one site over the batches."""

    paired: ClassVar[bool] = False
    """Whether it takes in pairs. Its algorithm must say that it needs the float stream."""

    @abstractmethod
    def update(self, x: Array) -> None:
        """Take in ``(tokens, features)`` in float32."""

    def update_pair(self, x: Array, unquantized: Array | None) -> None:
        """Where ``paired``, called instead of ``update``: beside ``x`` what the same tokens are when no block before
        was quantized, of the same shape; None where they are not the same tokens (experts chosen otherwise)."""
        self.update(x)

    @abstractmethod
    def result(self) -> Any:
        """What the plugin that made it finds under the site's name in ``observed``; of a site of a cache, the
        ``StaticInput`` to quantize it with."""

    def rescale(self, scale: Array) -> bool:
        """Make it as if every ``x`` had been ``x / scale``, ``(features,)``. False when only a second look at
        the data can tell."""
        return False

    def transform(self, map: LinearMap) -> bool:
        """Make it as if every ``x`` had been ``map.apply(x)``. False when only a second look at the data can tell."""
        return map.kind == "scale" and map.scale is not None and self.rescale(map.scale)


class Adapter(ABC):
    """Speaks one framework. Importing the class must not import the framework."""

    handles: ClassVar[tuple[str, ...]] = ()
    """Dotted names of the live objects it takes, matched along their classes' MRO."""

    @abstractmethod
    def refuses(self, folder: Path) -> str | None:
        """Why this folder is not for this adapter, or ``None``. Reads no weights."""

    @abstractmethod
    def open(self, source: Any, device: str, checkpoint: Checkpoint | None = None) -> Model:
        """Open a folder (``Path``) or a live object. ``checkpoint`` replaces the folder's own tensors (a quantized
        folder is opened with its weights dequantized). Raises ``CheckpointError``."""


@dataclass(frozen=True)
class Needs:
    """What an algorithm must be given beside the weights.

    data: the model has to run on calibration data. gradient: blocks that can be differentiated.
    float_stream: what reaches a block, and leaves it, when nothing was quantized; a second set of activations on disk.
    float_only: all that it is shown may be what the float model computes; where that is enough for the whole plan, a
        block runs once over the data, not twice.
    """

    data: bool = False
    gradient: bool = False
    float_stream: bool = False
    float_only: bool = False


@dataclass(frozen=True)
class Data:
    """The calibration data of one block. Batches are read from disk when they are asked for.

    batches: what reaches the block, the blocks before it quantized. Empty where the run needs no data.
    floats: the same batches, no block quantized; targets: what the float block returns for ``floats``, as ``run``
        returned it. Both empty unless the algorithm needs the float stream.
    sizes: samples in each batch.
    start: what the algorithm before made of the layers, by layer name, for an algorithm that ``refines``.
    as_seen: makes the block's activations what an engine will see under its scheme. Not to be differentiated.
    refusal: why the checkpoint could not say a transform, or ``None``. One that is refused is dropped in the end; what
        learns a transform asks before.
    """

    batches: Sequence[Batch] = ()
    floats: Sequence[Batch] = ()
    targets: Sequence[Mapping[str, RawTensor]] = ()
    sizes: Sequence[int] = ()
    start: Mapping[str, QuantizedTensor] = field(default_factory=dict)
    as_seen: OnSite = lambda name, x: None
    refusal: Callable[[Transform], str | None] = lambda transform: None


class Algorithm:
    """A stage plugin: implements some of ``observe``, ``smooth`` and ``quantize`` with ``@hookimpl``.

    ``Options`` is validated against the recipe before anything runs; the instance keeps it in ``options``.
    """

    Options: ClassVar[type[Strict]] = Strict
    refines: ClassVar[bool] = False
    """Whether it can start from what another algorithm made: then that one may stand before it (``data.start``)."""

    def __init__(self, options: Any = None):
        self.options: Any = options if options is not None else self.Options()

    @property
    def kinds(self) -> tuple[SiteKind, ...]:
        """The kinds of site that it treats. One that does not treat inputs has no part in quantizing layers."""
        return ("input",)

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        """Why it cannot treat this layer so, or ``None``. Asked while planning."""
        return None

    def unsupported_cache(self, cache: CacheInfo, args: QuantizationArgs) -> str | None:
        """Why it cannot treat this cache so, or ``None``. Asked while planning."""
        return None

    def needs(self, scheme: QuantizationScheme) -> Needs:
        """What it needs for layers of this scheme. Asked while planning; by default data, when it observes or
        transforms (what feeds what is found by running)."""
        return Needs(data=hasattr(self, "observe") or hasattr(self, "smooth"))

    def scatters(self, scheme: QuantizationScheme) -> bool:
        """Whether its tensors come with a ``group_index``. Asked while planning: few formats can hold one."""
        return False

    def leaves_online(self, layer: LayerInfo, hidden: int) -> Mapping[str, str]:
        """Kinds of maps (``LinearMap.kind``) of this layer's input that it may leave to be computed at run time, each
        with what to change so that it does not (``set r4: false``). Asked while planning: few formats can hold one.
        ``hidden``: features of the residual stream, where known."""
        return {}

    def residual(self, features: int) -> LinearMap | None:
        """The rotation that it wants of the whole model's residual stream. Asked once, while planning."""
        return None

    def remarks(self, layers: Sequence[LayerInfo]) -> Sequence[str]:
        """What a user should know about how it treats these layers. Shown in the plan and the report."""
        return ()


@dataclass(frozen=True)
class Choice:
    """Layers that must have one scheme, and what each candidate costs: its loss (see ``gs_core.allocation``), and the
    bits of all their stored weights."""

    layers: tuple[LayerInfo, ...]
    schemes: tuple[QuantizationScheme, ...]
    losses: tuple[float, ...]
    bits: tuple[int, ...]


class Allocator(Algorithm):
    """Chooses a scheme for every layer before the line begins: mixed precision.

    ``candidates`` are tried on the first ``samples`` calibration samples.
    """

    candidates: Sequence[QuantizationScheme] = ()
    samples: int = 8

    def choose(self, choices: Sequence[Choice], fixed: int, outside: int) -> Sequence[int]:
        """The number of the candidate for each choice. fixed: bits of the layers that are not chosen for. outside:
        bits of everything that is no layer. Raises ``PlanError`` when its goal cannot be met."""
        raise NotImplementedError


@dataclass(frozen=True)
class Output:
    """The folder being written, and the part of it that is due.

    ``part`` counts from 0 to ``parts - 1``: the blocks in order, then what lies outside them; after that,
    ``tensors`` is empty and ``final`` is set.
    """

    folder: Path
    part: int
    parts: int
    tensors: Sequence[tuple[str, Tensor]] = ()
    final: "Finished | None" = None


@dataclass(frozen=True)
class Finished:
    """What is known when every shard is on disk."""

    config: dict[str, Any]
    schemes: Mapping[str, QuantizationScheme]
    """Scheme of every quantized layer by name."""
    kept: Sequence[str]
    """Names of the modules with a weight matrix that stayed in floating point."""
    files: Sequence[Path]
    shards: Mapping[str, Mapping[str, int]]
    """File name → tensor name → bytes."""
    aliases: Mapping[str, str]
    """Module names of the layers whose modules are spelt otherwise than the checkpoint spells them."""
    caches: Mapping[CacheInfo, QuantizationArgs] = field(default_factory=dict)
    """Args of every cache that is quantized; its ``sites`` are those that are."""
    online: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``LinearMap.describe()`` of the map at a layer's site, by layer; layers without one are missing."""


class CheckpointFormat:
    """A stage plugin that implements ``pack`` and ``export`` with ``@hookimpl``, and can read back what it wrote."""

    quant_method: ClassVar[str] = ""
    """The ``quant_method`` of the ``quantization_config`` it reads; engines know it by that name."""
    holds_group_index: ClassVar[bool] = False
    """Whether it can say that a group's input features are not neighbours."""
    holds_online: ClassVar[frozenset[str]] = frozenset()
    """Kinds of maps (``LinearMap.kind``) at sites that it can hold, to be computed at run time."""

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        """Why it cannot hold this layer so, or ``None``. Asked while planning."""
        return None

    def unsupported_cache(self, cache: CacheInfo, args: QuantizationArgs) -> str | None:
        """Why it cannot hold this cache so, or ``None``. ``cache.sites`` are those that are quantized. Asked while
        planning."""
        return "this checkpoint format has no place for a quantized KV cache"

    def unsupported_online(self, kind: str, scheme: QuantizationScheme) -> str | None:
        """Why it cannot say that the input of a layer of this scheme goes through a map of this kind, or ``None``.
        By default ``holds_online`` says it for all schemes. Asked while planning."""
        return (
            None
            if kind in self.holds_online
            else f"this checkpoint format holds no {kind} map to be computed at run time"
        )

    def unsupported_map(self, map: LinearMap, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        """Why it cannot say that this layer's input goes through this map, or ``None``. By default all maps of a kind
        are alike. Asked for each map that an algorithm makes; what is refused is dropped, and the report says so."""
        return self.unsupported_online(map.kind, scheme)

    def layout(self, scheme: QuantizationScheme) -> str:
        """The name of the layout that ``pack`` is asked for (``pack-quantized``)."""
        return self.quant_method

    def fit(self, layer: LayerInfo, scheme: QuantizationScheme) -> tuple[QuantizationScheme, str] | None:
        """Another scheme in place of the asked one, and why, where engines compute this layer only so. Shown in
        the plan and the report."""
        return None

    def conflicts(self, layers: Mapping[str, QuantizationScheme | None]) -> list[str]:
        """What cannot stand together in one checkpoint. Asked while planning. Where caches are quantized, every
        attention module is named too, with a scheme that has no weights."""
        return []

    def remarks(self, online: Collection[str]) -> Sequence[str]:
        """What a user should know of a checkpoint that leaves maps of these kinds to be computed at run time. Shown in
        the plan and the report."""
        return ()

    def recognises(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether a quantized folder is of this format: by its ``quant_method``, unless the format says so elsewhere.

        config: the folder's config.json.
        """
        return (config.get("quantization_config") or {}).get("quant_method") == self.quant_method

    def pack_cache(self, cache: CacheInfo, numbers: CacheNumbers) -> Mapping[str, Array]:
        """The tensors that a file holds for a quantized cache, by their full names; none for a dynamic one."""
        return {}

    def read(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[Checkpoint, dict[str, LayerNumbers]]:
        """A checkpoint of this format as a floating-point one, and the numbers of each quantized layer.

        config: the folder's config.json. Each packed layer becomes a ``.weight`` that is dequantized when it is
        read. Raises ``CheckpointError`` for what it does not understand.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be read back")

    def read_caches(
        self, checkpoint: Checkpoint, config: Mapping[str, Any], infos: Sequence[CacheInfo]
    ) -> dict[str, CacheNumbers]:
        """The numbers of each quantized cache by name. checkpoint: as it is stored. infos: all caches of the model.

        Raises ``CheckpointError`` for what it does not understand.
        """
        return {}


@dataclass(frozen=True)
class Request:
    """What is asked of a kernel."""

    scheme: QuantizationScheme
    shape: tuple[int, int]
    device: str


class Kernel(ABC):
    """One operation on one device: ``x @ weight.T`` for a packed quantized weight."""

    priority: ClassVar[int] = 0

    @abstractmethod
    def unsupported(self, request: Request) -> str | None:
        """Why it cannot serve the request, or ``None``."""

    @abstractmethod
    def pack(self, tensor: QuantizedTensor, scheme: QuantizationScheme) -> Any:
        """The weight in the layout this kernel reads. ``scheme.inputs`` must be dynamic or ``None``."""

    @abstractmethod
    def linear(self, x: Array, packed: Any) -> Array:
        """``(..., in_features)`` to ``(..., out_features)``."""
