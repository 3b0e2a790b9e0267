"""A plan: a row for every layer and every cache, and what follows from them for the run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gs_core.interfaces import Algorithm, CacheInfo, CheckpointFormat, Engine, LayerInfo, Model, Needs
from gs_schemas import QuantizationArgs, QuantizationScheme, Recipe


@dataclass(frozen=True)
class QuantizedSource:
    """A source that is already quantized: its schemes, and the bytes of its stored tensors."""

    schemes: str
    nbytes: int


@dataclass(frozen=True)
class Row:
    """What happens to one layer, and why. ``scheme`` is ``None`` when it stays in floating point."""

    layer: LayerInfo
    scheme: QuantizationScheme | None
    algorithms: tuple[str, ...]
    kernel: str
    reason: str

    @property
    def quantizer(self) -> str:
        return self.algorithms[-1]


@dataclass(frozen=True)
class CacheRow:
    """What happens to what one attention module caches, and why. ``args`` is ``None`` when it stays in floating
    point; ``cache.sites`` are those that are quantized; ``algorithm`` observes them; ``mapping`` map its keys."""

    cache: CacheInfo
    args: QuantizationArgs | None
    algorithm: str
    reason: str
    mapping: tuple[str, ...] = ()

    @property
    def scheme(self) -> QuantizationScheme:
        return QuantizationScheme(kv_cache=self.args)


@dataclass(frozen=True)
class Plan:
    """Everything that ``pipeline.run`` needs to know; nothing in it has read a weight."""

    recipe: Recipe
    model: Model
    adapter: str
    device: str
    rows: tuple[Row, ...]
    algorithms: Mapping[str, Algorithm]
    format: CheckpointFormat
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was found while planning."""
    versions: Mapping[str, str] = field(default_factory=dict)
    caches: tuple[CacheRow, ...] = ()
    """Empty where no scheme of the recipe quantizes a cache."""
    engines: tuple[Engine, ...] = ()
    """Engines that were tried with the format, and whether each opens the result."""
    source: QuantizedSource | None = None
    """``None`` for a float source."""

    @property
    def bytes_before(self) -> int:
        """Bytes of the stored tensors of the source."""
        return self.model.nbytes() if self.source is None else self.source.nbytes

    @property
    def needs_data(self) -> bool:
        """Whether the model has to run: an algorithm asks for data, or the scale of an activation or a cache is
        static."""
        static = any(static_inputs(row.scheme) for row in self.rows)
        return bool(self.needing_data) or static or any(row.args and not row.args.dynamic for row in self.caches)

    @property
    def needing_data(self) -> list[str]:
        """The algorithms that ask for data."""
        asking = {name for name, needs in self._needs() if needs.data}
        return [name for name in self.algorithms if name in asking]

    @property
    def needs_float_stream(self) -> bool:
        """Whether the activations of the float model are kept beside those of the quantized one."""
        return any(needs.float_stream for _, needs in self._needs())

    @property
    def needs_loss(self) -> bool:
        """Whether gradients of the model's loss are found before the first block."""
        return any(needs.loss for _, needs in self._needs())

    @property
    def float_only(self) -> bool:
        """Whether what a float block hands on is all that the next one is calibrated on. Static scales are for what
        arrives in the quantized model."""
        static = any(static_inputs(row.scheme) for row in self.rows) or bool(self.caches)
        return not static and all(needs.float_only for _, needs in self._needs() if needs.data)

    def _needs(self) -> set[tuple[str, Needs]]:
        asked = {(n, row.scheme) for row in self.rows if row.scheme for n in row.algorithms}
        asked |= {(n, row.scheme) for row in self.caches for n in row.mapping}
        return {(n, self.algorithms[n].needs(scheme)) for n, scheme in asked}

    def table(self) -> list[dict[str, Any]]:
        """The rows as plain data, in the order of execution, then kept modules, then caches."""
        rows = [
            {
                "layer": row.layer.name,
                "shape": list(row.layer.shape),
                "scheme": row.scheme.describe() if row.scheme else "float",
                "algorithms": list(row.algorithms),
                "adapter": self.adapter,
                "format": self.format.layout(row.scheme) if row.scheme else "",
                "kernel": row.kernel,
                "why": row.reason,
            }
            for row in self.rows
        ]
        kept: list[dict[str, Any]] = [
            {
                "layer": name,
                "shape": None,
                "scheme": "float",
                "algorithms": [],
                "adapter": self.adapter,
                "format": "",
                "kernel": "",
                "why": why,
            }
            for name, why in self.model.kept.items()
        ]
        return rows + kept + [self._cache(row) for row in self.caches]

    def _cache(self, row: CacheRow) -> dict[str, Any]:
        return {
            "layer": row.cache.name,
            "shape": None,
            "scheme": row.scheme.describe(),
            "algorithms": [*row.mapping, row.algorithm] if row.args else [],
            "adapter": self.adapter,
            "format": self.recipe.format if row.args else "",
            "kernel": "",
            "why": row.reason,
        }


def static_inputs(scheme: QuantizationScheme | None) -> bool:
    return bool(scheme and scheme.inputs and scheme.inputs.dynamic is False)
