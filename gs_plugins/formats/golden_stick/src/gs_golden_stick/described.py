"""What the four layouts have in common: which layers they hold, shards, and a description of every tensor."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from gs_core import (
    Array,
    CacheInfo,
    CacheNumbers,
    CheckpointFormat,
    Finished,
    LayerInfo,
    LinearMap,
    Output,
    QuantizationScheme,
    QuantizedTensor,
    StaticInput,
    hookimpl,
)
from gs_core.engines import fit_experts, fused_conflicts
from gs_core.interfaces import Engine, LayerNumbers
from gs_core.storage import INDEX, Checkpoint, Tensor, copy_file, write_json, write_safetensors
from gs_golden_stick import caches
from gs_golden_stick.labels import DESCRIPTIONS, FLOAT, describe, label
from gs_golden_stick.reading import read

WIDTH = 32  # int4 kernels take groups of a multiple of this many input features


class Described(CheckpointFormat):
    """A folder of shards with a JSON file that gives every tensor its type (``W8A8``, ``FLOAT``)."""

    labels: ClassVar[tuple[str, ...]] = ()
    """The types it holds."""
    description: ClassVar[str] = DESCRIPTIONS[0]
    shard: ClassVar[str] = "quant-model-{:05d}-of-{:05d}.safetensors"
    index: ClassVar[str | None] = INDEX
    framework: ClassVar[str] = "ms"
    packs_int4: ClassVar[bool] = True
    readers: ClassVar[tuple[Engine, ...]] = ()
    """Engines that load this layout."""

    # --- planning ------------------------------------------------------------------------------------------------

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        weights, inputs = scheme.weights, scheme.inputs
        assert weights is not None
        for args in (weights, inputs):
            if args and args.number.kind != "int":
                return f"{self.quant_method} here holds signed integers, not {args.format}"
        name = label(scheme)
        if name not in self.labels:
            return f"{self.quant_method} here holds {', '.join(self.labels)}, not {name}"
        if weights.scale_format != "model":
            return f"scales have the model's dtype here, not {weights.scale_format}"
        if weights.granularity != "channel" and (weights.bits == 8 or weights.granularity != "group"):
            also = "" if weights.bits == 8 else " or group"
            return f"int{weights.bits} weights have scales per channel{also} here, not per {weights.granularity}"
        if weights.group_size and weights.group_size % WIDTH:
            return f"kernels take groups of a multiple of {WIDTH} input features, not {weights.group_size}"
        if weights.bits == 4 and self.packs_int4 and layer.shape[0] % 2:
            return f"int4 is packed in pairs of output features, of which {layer.shape[0]} is an odd number"
        if inputs is None:
            return None
        if not weights.symmetric:
            return "int8 products need symmetric weights"
        if inputs.granularity != ("token" if inputs.dynamic else "tensor"):
            return "int8 activations are dynamic per token or static per tensor"
        if inputs.dynamic and not inputs.symmetric:
            return "activations per token have no zero point; set inputs.symmetric: true"
        return None

    def fit(self, layer: LayerInfo, scheme: QuantizationScheme) -> tuple[QuantizationScheme, str] | None:
        return fit_experts(layer, scheme)

    def layout(self, scheme: QuantizationScheme) -> str:
        """The type that the description gives the layer's tensors."""
        return label(scheme)

    def conflicts(self, layers: Mapping[str, QuantizationScheme | None]) -> list[str]:
        return fused_conflicts(layers)

    def engines(self, schemes: Mapping[str, QuantizationScheme], online: bool) -> Sequence[Engine]:
        return self.readers

    # --- writing -------------------------------------------------------------------------------------------------

    @hookimpl
    def pack(
        self, tensor: QuantizedTensor, inputs: StaticInput | None, layout: str, online: LinearMap | None
    ) -> Mapping[str, Array]:
        return self.parameters(tensor, inputs, layout, None if online is None else online.scale)

    @abstractmethod
    def parameters(
        self, tensor: QuantizedTensor, inputs: StaticInput | None, label: str, divisor: Array | None = None
    ) -> dict[str, Array]:
        """A layer's arrays by the last part of their names.

        label: the layer's type, ``layout``. divisor: ``(in_features,)``, what the layer itself divides its input by.
        """

    @hookimpl
    def export(self, output: Output) -> Sequence[str]:
        if output.final is not None:
            return self._finish(output.folder, output.final)
        name = self.shard.format(output.part + 1, output.parts)
        self.write(output.folder / name, self.arrange(output.tensors))
        return [name]

    def arrange(self, tensors: Sequence[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        """The tensors of a part as they are written."""
        return tensors

    def write(self, path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
        write_safetensors(path, tensors, self.framework)

    def _finish(self, folder: Path, final: Finished) -> list[str]:
        documents: dict[str, Any] = {self.description: self.describe(final)}
        if self.index:
            weight_map = {tensor: file for file, tensors in final.shards.items() for tensor in tensors}
            total = sum(size for tensors in final.shards.values() for size in tensors.values())
            documents[self.index] = {"metadata": {"total_size": total}, "weight_map": weight_map}
        # Engines that find a quantization_config read it in place of the description.
        documents["config.json"] = {k: v for k, v in final.config.items() if k != "quantization_config"}
        for name, document in documents.items():
            write_json(folder / name, document)
        for file in final.files:
            copy_file(file, folder / file.name)
        return [*documents, *(file.name for file in final.files)]

    def describe(self, final: Finished) -> dict[str, Any]:
        """The description: a type for every tensor. A head that is tied has no tensor, yet engines ask for its
        type."""
        return describe(final.schemes, (name for names in final.shards.values() for name in names)) | (
            {} if any("lm_head.weight" in names for names in final.shards.values()) else {"lm_head.weight": FLOAT}
        )

    # --- reading -------------------------------------------------------------------------------------------------

    def recognises(self, folder: Path, config: Mapping[str, Any]) -> bool:
        return any((folder / name).is_file() for name in DESCRIPTIONS)

    def read(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[Checkpoint, dict[str, LayerNumbers]]:
        return read(checkpoint)

    def read_caches(
        self, checkpoint: Checkpoint, config: Mapping[str, Any], infos: Sequence[CacheInfo]
    ) -> dict[str, CacheNumbers]:
        return caches.read(checkpoint, infos)
