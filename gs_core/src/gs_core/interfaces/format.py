"""What a checkpoint format is, and what it is given to write."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gs_core.arrays import Array
from gs_core.interfaces.layers import CacheInfo, CacheNumbers, LayerInfo, LayerNumbers
from gs_core.linear_map import LinearMap
from gs_core.storage import Checkpoint, Tensor
from gs_schemas import QuantizationArgs, QuantizationScheme


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


@dataclass(frozen=True)
class Engine:
    """A serving engine, and whether it opens a checkpoint."""

    name: str
    opens: bool = True
    note: str = ""
    """Why the engine does not open it; if it does, a restriction."""


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

    def engines(self, schemes: Mapping[str, QuantizationScheme], online: bool) -> Sequence[Engine]:
        """The engines that were tried with this format, and whether each opens a checkpoint with these schemes.

        The plan, the summary and the report show the result.

        Args:
            schemes: scheme of every quantized layer and cache, by its name.
            online: True if the engine must compute maps at run time.
        """
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
