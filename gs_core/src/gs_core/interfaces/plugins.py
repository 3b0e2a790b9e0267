"""What plugins are made of: adapters, algorithms, checkpoint formats and kernels, and what they are given."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gs_core.arrays import Array, RawTensor
from gs_core.interfaces.model import (
    Batch,
    CacheInfo,
    CacheNumbers,
    LayerInfo,
    LayerNumbers,
    Model,
    OnSite,
    SiteKind,
    Transform,
)
from gs_core.linear_map import LinearMap
from gs_core.quantized import QuantizedTensor
from gs_core.storage import Checkpoint, Tensor
from gs_schemas import QuantizationArgs, QuantizationScheme, Strict


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

    @property
    def maps_keys(self) -> Mapping[str, str]:
        """Kinds of maps that it may put at the quantized keys of a cache, each with what to change so that it does not
        (``set r3: false``). One that maps none has no part in caches."""
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
    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same of the maps that cached keys go through, by the names of ``caches``."""


class CheckpointFormat:
    """A stage plugin that implements ``pack`` and ``export`` with ``@hookimpl``, and can read back what it wrote."""

    quant_method: ClassVar[str] = ""
    """The ``quant_method`` of the ``quantization_config`` it reads; engines know it by that name."""
    holds_group_index: ClassVar[bool] = False
    """Whether it can say that a group's input features are not neighbours."""
    holds_online: ClassVar[frozenset[str]] = frozenset()
    """Kinds of maps (``LinearMap.kind``) at inputs that it can hold, to be computed at run time."""
    holds_keys: ClassVar[frozenset[str]] = frozenset()
    """Kinds of maps of cached keys that it can hold, likewise."""

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

    def remarks(self, online: Collection[str], keys: Collection[str]) -> Sequence[str]:
        """What a user should know of a checkpoint that leaves maps of these kinds to be computed at run time, of inputs
        and of cached keys. Shown in the plan and the report."""
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
