"""A small decoder in plain NumPy, and the adapter that opens it: an example of everything an adapter does.

::

    x = embed[tokens]
    of each block:  n = norm(x);  x = x + o(attention(q(n), k(n), v(n)))
                    n = norm(x);  x = x + down(silu(gate(n)) * up(n))
    logits = lm_head(norm(x))

It declares where its sites and folds are; an adapter for models it has not seen finds them by watching.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gs_core.arrays import Array, RawTensor, astype, from_raw, namespace, to_raw
from gs_core.errors import CheckpointError, PlanError
from gs_core.interfaces import Adapter, Batch, CacheInfo, LayerInfo, Model, Site
from gs_core.interfaces.model import ALL
from gs_core.linear_map import LinearMap
from gs_core.storage import Checkpoint, Tensor
from gs_core.testing.toy_arithmetic import rms_norm
from gs_core.testing.toy_block import ToyBlock
from gs_core.testing.toy_files import CONFIG, MODEL_TYPE, ToyConfig, read_config

SHARED = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "gate", "up": "gate", "down": "down"}
"""Each layer, in the order of execution, and the first of the layers that share its input."""
NORMS = ("attention_norm", "mlp_norm", "norm")
NORM_BEFORE = dict.fromkeys("qkv", "attention_norm") | {"gate": "mlp_norm", "up": "mlp_norm", "lm_head": "norm"}
"""Which norm's output a weight multiplies."""


class ToyAdapter(Adapter):
    """``asarray`` makes the arrays that plugins see, ``(ndarray) -> array``: any namespace can be tried on the toy."""

    def __init__(self, asarray: Callable[[np.ndarray], Array] = np.asarray):
        self.asarray = asarray

    def refuses(self, folder: Path) -> str | None:
        try:
            kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return f"no {CONFIG} with a model_type"
        return None if kind == MODEL_TYPE else f"its model_type is '{kind}', not '{MODEL_TYPE}'"

    def open(
        self, source: Any, device: str, checkpoint: Checkpoint | None = None, trust_remote_code: bool = False
    ) -> "ToyModel":
        refusal = self.refuses(source)
        if refusal:
            raise CheckpointError(f"{source}: {refusal}")
        if device != "cpu":
            raise PlanError([f"the toy computes on the cpu, not on '{device}'"])
        return ToyModel(source, checkpoint or Checkpoint(source), self.asarray)


class ToyModel(Model):
    """Reads headers when it is opened, and weights when they are used."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, asarray: Callable[[np.ndarray], Array]):
        self.folder, self.checkpoint, self.asarray = folder, checkpoint, asarray
        self.name = folder.name
        self.shape = ToyConfig.from_dict(read_config(folder))
        self.kept = {"lm_head": "outside the decoder blocks"}
        self.hidden = self.shape.hidden
        self.rotation: LinearMap | None = None
        self.differentiates = hasattr(asarray(np.zeros(1, np.float32)), "requires_grad")
        self.layers = [
            self._info(index, f"{block}.{layer}", f"{block}.{first}.input")
            for index, block in enumerate(self.blocks)
            for layer, first in SHARED.items()
        ]
        self.caches = [self._cache(index, f"{block}.attention") for index, block in enumerate(self.blocks)]

    def _info(self, index: int, name: str, site: str) -> LayerInfo:
        stored = self.checkpoint[f"{name}.weight"]
        rows, columns = stored.shape
        return LayerInfo(name, index, (rows, columns), site, stored.dtype)

    def _cache(self, index: int, name: str) -> CacheInfo:
        features, heads = self.shape.values, self.shape.kv_heads
        dtype = self.checkpoint[f"{self.blocks[index]}.k.weight"].dtype
        key = Site(f"{name}.key", features, (), "key", heads, dtype)
        value = Site(f"{name}.value", features, (), "value", heads, dtype)
        return CacheInfo(name, index, (key, value), rotated_only="the toy rotates no positions into them")

    @property
    def blocks(self) -> Sequence[str]:
        return [f"blocks.{index}" for index in range(self.shape.blocks)]

    def block(self, index: int, probe: Batch | None) -> ToyBlock:
        return ToyBlock(self, index, loaded=probe is not None)

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32: the checkpoint's, or what a rotation of the residual stream makes of it."""
        value = astype(from_raw(self.checkpoint[name].read()), "float32")
        if self.rotation is None:
            return value
        block, _, leaf = name.removesuffix(".weight").rpartition(".")
        if leaf in NORMS:
            return np.ones_like(value)
        if leaf in ("o", "down"):
            return np.ascontiguousarray(self.rotation.apply(value.T).T)
        norm = NORM_BEFORE.get(leaf)
        if norm is not None:
            name = f"{block}.{norm}.weight" if block else f"{norm}.weight"
            value = value * astype(from_raw(self.checkpoint[name].read()), "float32")
        return self.rotation.apply(value)

    def rotate(self, rotation: LinearMap) -> None:
        why = rotation.objection(self.hidden)
        if why:
            raise ValueError(why)
        self.rotation = rotation

    def rest(self) -> Iterator[tuple[str, Tensor]]:
        for name, stored in self.checkpoint.tensors.items():
            if not name.startswith("blocks."):
                yield name, stored if self.rotation is None else to_raw(astype(self.read(name), stored.dtype))

    def config(self) -> dict[str, Any]:
        return read_config(self.folder)

    def files(self) -> Sequence[Path]:
        return [self.folder / "tokenizer.json"]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in [self.folder / CONFIG, *self.checkpoint.files]:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def tokenize(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def vocabulary(self) -> int:
        return self.shape.vocabulary

    def max_tokens(self) -> int:
        return self.shape.max_tokens

    def nbytes(self) -> int:
        return self.checkpoint.nbytes

    def logits(
        self, tokens: np.ndarray, last: Mapping[str, RawTensor], windows: slice = ALL, positions: slice = ALL
    ) -> np.ndarray:
        hidden = rms_norm(from_raw(last["hidden"])[windows, positions], self.read("norm.weight"))
        return hidden @ self.read("lm_head.weight").T

    def loss_gradient(self, tokens: np.ndarray, last: Mapping[str, RawTensor], seed: int) -> dict[str, Array]:
        hidden: Any = self.wide(from_raw(last["hidden"])).requires_grad_()
        logits = rms_norm(hidden, self.wide(self.read("norm.weight"))) @ self.wide(self.read("lm_head.weight")).T
        xp = namespace(logits)
        exponents = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
        predicted: Any = exponents / xp.sum(exponents, axis=-1, keepdims=True)
        seen = np.cumsum(predicted.detach().numpy(), axis=-1)
        drawn = (seen < np.random.default_rng(seed).random((*tokens.shape, 1)) * seen[..., -1:]).sum(axis=-1)
        loss: Any = -xp.sum(xp.log(predicted) * self.wide(np.eye(self.shape.vocabulary)[drawn]))
        loss.backward()
        return {"hidden": astype(hidden.grad, "float32")}

    def wide(self, value: np.ndarray) -> Array:
        return self.asarray(value.astype(np.float64))
