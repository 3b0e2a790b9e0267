"""What an algorithm is, what it asks for, and what it is given."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gs_core.arrays import Array, RawTensor
from gs_core.interfaces.layers import CacheInfo, LayerInfo, SiteKind
from gs_core.interfaces.model import Batch
from gs_core.interfaces.transforms import OnSite, Transform
from gs_core.linear_map import LinearMap
from gs_core.quantized import QuantizedTensor
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


@dataclass(frozen=True)
class Needs:
    """What an algorithm must be given beside the weights.

    data: the model has to run on calibration data. gradient: blocks that can be differentiated.
    float_stream: what reaches a block, and leaves it, when nothing was quantized; a second set of activations on disk.
    loss: what an error of the block's output does to the model's predictions: ``Data.gradients``, for which the float
        model runs over some of the data, and back, before the first block. Takes ``gradient`` and ``float_stream``.
    float_only: all that it is shown may be what the float model computes; where that is enough for the whole plan, a
        block runs once over the data, not twice.
    """

    data: bool = False
    gradient: bool = False
    float_stream: bool = False
    loss: bool = False
    float_only: bool = False


@dataclass(frozen=True)
class Data:
    """The calibration data of one block. Batches are read from disk when they are asked for.

    batches: what reaches the block, the blocks before it quantized. Empty where the run needs no data.
    floats: the same batches, no block quantized; targets: what the float block returns for ``floats``, as ``run``
        returned it. Both empty unless the algorithm needs the float stream.
    sizes: samples in each batch.
    gradients: some samples of ``floats``, and the gradient of the model's loss (``Model.loss_gradient``) at what the
        float block returns for each, for ``Block.backward``. Empty unless the algorithm needs the loss.
    start: what the algorithm before made of the layers, by layer name, for an algorithm that ``refines``.
    as_seen: makes the block's activations what an engine will see under its scheme. Not to be differentiated.
    refusal: why the checkpoint could not say a transform, or ``None``. One that is refused is dropped in the end; what
        learns a transform asks before.
    """

    batches: Sequence[Batch] = ()
    floats: Sequence[Batch] = ()
    targets: Sequence[Mapping[str, RawTensor]] = ()
    sizes: Sequence[int] = ()
    gradients: Sequence[tuple[Batch, Mapping[str, RawTensor]]] = ()
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

    @property
    def residual_required(self) -> bool:
        """True if the recipe requires the rotation that ``residual`` returns.

        If the residual stream of a model cannot be rotated, planning then refuses the model. If False, planning leaves
        the rotation out and adds a note.
        """
        return False

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
