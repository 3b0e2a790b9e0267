"""An opened transformers model."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gs_core import CacheInfo, CheckpointError, LayerInfo, LinearMap, Model, Site
from gs_core.arrays import RawTensor
from gs_core.calibration import WrappedTokenizer
from gs_core.interfaces import Batch
from gs_core.interfaces.model import ALL
from gs_core.known_folds import Folds
from gs_core.products import rough_products
from gs_core.storage import INDEX, Checkpoint, Tensor, check_float, check_link
from gs_hf import topology
from gs_hf.block import HFBlock
from gs_hf.caches import observe_caches
from gs_hf.construct import find_blocks
from gs_hf.layers import Layers
from gs_hf.naming import name_places
from gs_hf.products import fast_products
from gs_hf.residual import Residual, untied
from gs_hf.running import Runner, fast_dtype, take_up
from gs_hf.structure import why_not_rotated
from gs_hf.tokenizer import load_tokenizer
from gs_hf.weights import Weights

NOT_CARRIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx", ".ckpt")


class HFModel(Model):
    """See ``gs_core.Model``. The module's parameters are on the meta device but for the block being worked on."""

    differentiates = True

    def __init__(
        self,
        module: torch.nn.Module,
        checkpoint: Checkpoint,
        folder: Path,
        config: dict[str, Any],
        device: str,
        name: str,
        trust_remote_code: bool = False,
    ):
        self.name, self.folder, self.checkpoint, self.device = name, folder, checkpoint, device
        self._config, self.module, self.trust_remote_code = config, module, trust_remote_code
        try:
            self.naming = name_places(module, {n: t.shape for n, t in checkpoint.tensors.items()})
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}") from None
        self.weights = Weights(module, self.naming, checkpoint, device)
        for parameter, _ in module.named_parameters():
            for place in self.naming.by_parameter.get(parameter, []):
                check_float(place.source, checkpoint[place.source].dtype)
        missing = self.weights.missing()
        if missing:
            raise CheckpointError(
                f"{name}: the checkpoint has no weights for {', '.join(missing[:3])}"
                f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; it is incomplete"
            )
        seen = topology.observe(module)
        self._blocks = find_blocks(module, seen.uses)
        inseparable = topology.why_inseparable(module, self._blocks) if self._blocks != [""] else None
        if inseparable:
            self._blocks = [""]
            self.warnings = [f"the whole model is treated as one block, and must fit in memory: {inseparable}"]
        self.found = Layers(module, self.naming, checkpoint, self._blocks, seen)
        self.layers: list[LayerInfo] = self.found.infos
        self.kept = self.found.kept
        if not self.layers:
            inside = (f". {n}: {why}" for n, why in self.kept.items() if n.startswith(tuple(self._blocks)))
            first = next(inside, "")
            raise CheckpointError(f"{name}: no layer of {type(module).__name__} can be quantized{first}")
        cached, self.uncached = observe_caches(module)
        self.cache_at: dict[int, CacheInfo] = {each.index: self.found.add_cache(each) for each in cached}
        self.caches = list(self.cache_at.values())
        self.makers = {each.maker: self.cache_at[each.index].sites[0].name for each in cached if each.maker}
        """Parameters whose products are keys before their rotation, and the sites of those."""
        self.tokenizer_source: str | Path | None = folder
        """The folder or hub id of the tokenizer. For a live model it is ``name_or_path``."""
        self.copied: Any = None
        """Keeps the folder of a live model's weights, which is removed with it; None for the user's own folder."""
        self.runner: Runner | None = None
        embedding = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
        self.hidden = int(embedding.weight.shape[1]) if isinstance(embedding, torch.nn.Embedding) else 0
        self.residual: Residual | None = None
        self.float64: bool | None = None
        """Whether its blocks run in float64; ``None`` until one was tried."""
        self.folds = Folds()
        self._current: HFBlock | None = None

    @property
    def blocks(self) -> Sequence[str]:
        return self._blocks

    def block(self, index: int, probe: Batch | None) -> HFBlock:
        if self._current is not None:
            self._current.forget()
        if probe is not None and self.runner is None:
            self._prepare()
        self._current = HFBlock(self, index, probe)
        if self.residual is not None:
            self._current.rotate(self.residual)
        return self._current

    def _prepare(self) -> None:
        """Make ready to run: buffers to the device, and the small things outside the blocks loaded."""
        for owner in self.module.modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None:
                    owner._buffers[name] = buffer.to(self.device)
        self.weights.load_outside(self._blocks)
        self.runner = Runner(self.module, self._blocks, self.device)

    def sites(self, index: int) -> dict[str, Site]:
        return self.found.sites[index]

    def rest(self) -> Iterator[tuple[str, Tensor]]:
        inside = self.found.sources_in_blocks
        outside = ((name, tensor) for name, tensor in self.checkpoint.tensors.items() if name not in inside)
        yield from outside if self.residual is None else self.residual.rewrite(outside)

    def config(self) -> dict[str, Any]:
        return untied(self._config) if self.residual is not None else dict(self._config)

    @contextmanager
    def settings(self, exact: bool) -> Iterator[None]:
        stored = {info.dtype for info in self.layers}
        fast = not exact and {fast_dtype(dtype, self.device) for dtype in stored} == {torch.bfloat16}
        with fast_products(self.device), rough_products("bfloat16" if fast else None):
            yield

    def rotate(self, rotation: LinearMap) -> None:
        residual, why = Residual(self, rotation), why_not_rotated(self)
        if why:
            raise ValueError(why)
        residual.rotate_embedding()
        self.residual = residual
        if self.residual.tied:
            head = self.residual.head_name
            self.warnings = [*self.warnings, f"embeddings and head are not rotated alike: {head} is written on its own"]

    @property
    def rotation_divergence(self) -> float | None:
        return None if self.residual is None else self.residual.divergence

    def files(self) -> Sequence[Path]:
        shards = {p.name for p in self.checkpoint.files} | {"config.json", INDEX, "gsq_report.json"}
        found = sorted(
            p
            for p in self.folder.iterdir()
            if p.is_file()
            and p.name not in shards
            and not p.name.startswith(".")
            and p.suffix not in NOT_CARRIED
            and not p.name.endswith(".index.json")
        )
        for path in found:
            check_link(path, self.folder)
        return found

    def nbytes(self) -> int:
        return self.checkpoint.nbytes

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self._config, sort_keys=True).encode())
        for name, tensor in sorted(self.checkpoint.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        for path in self.checkpoint.files:
            status = path.stat()
            digest.update(f"{path.name} {status.st_size}".encode())
            if self.copied is None:
                digest.update(str(status.st_mtime_ns).encode())
            else:  # the file is as old as this process: only its bytes tell
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def tokenize(self, text: str) -> np.ndarray:
        return self.tokenizer.tokenize(text)

    def render_chat(self, chat: Sequence[Mapping[str, Any]]) -> str:
        return self.tokenizer.render_chat(chat)

    @cached_property
    def tokenizer(self) -> WrappedTokenizer:
        return load_tokenizer(self.tokenizer_source, self.name, self.trust_remote_code)

    def vocabulary(self) -> int:
        weight = getattr(self.module.get_input_embeddings(), "weight", None)
        return int(weight.shape[0] if weight is not None else self.module.config.get_text_config().vocab_size)

    def max_tokens(self) -> int | None:
        config = getattr(self.module, "config", None)
        limit = getattr(config.get_text_config(), "max_position_embeddings", None) if config else None
        return int(limit) if isinstance(limit, int) and limit > 0 else None

    def logits(
        self, tokens: np.ndarray, last: Mapping[str, RawTensor], windows: slice = ALL, positions: slice = ALL
    ) -> np.ndarray:
        assert self.runner is not None
        outputs = take_up(last, self.device)
        assert outputs is not None
        part = {name: array if name == "length" else array[windows] for name, array in outputs.items()}
        if self.residual is not None:  # the head is rotated only where it is written
            part["hidden"] = self.residual.rotation.undo(part["hidden"])
        return self.runner.head(tokens[windows], part, positions).float().cpu().numpy()

    def loss_gradient(self, tokens: np.ndarray, last: Mapping[str, RawTensor], seed: int) -> dict[str, torch.Tensor]:
        assert self.runner is not None
        outputs = take_up(last, self.device)
        assert outputs is not None
        rotation = None if self.residual is None else self.residual.rotation
        if rotation is not None:
            outputs["hidden"] = rotation.undo(outputs["hidden"])
        hidden = outputs["hidden"] = outputs["hidden"].detach().requires_grad_()
        logits = self.runner.head(tokens, outputs).float().flatten(0, 1)
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn = torch.multinomial(torch.softmax(logits.detach(), -1), 1, generator=generator)[:, 0]
        F.cross_entropy(logits, drawn, reduction="sum").backward()
        assert hidden.grad is not None
        return {"hidden": hidden.grad if rotation is None else rotation.apply(hidden.grad)}
