"""Rotating the residual stream: which weights read from it and which write to it, found by trying.

Ashkboos et al., "SliceGPT", https://arxiv.org/abs/2401.15024, section 3.1: a network whose norms divide by the root
mean square computes the same in any rotated basis, once the weights of its norms stand in the layers they feed.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gs_core import CheckpointError, LinearMap
from gs_core.applying import Change, change_inputs
from gs_core.arrays import RawTensor, astype, to_raw
from gs_core.comparing import EQUIVALENCE_TOLERANCE, equivalent, unexplained_change
from gs_core.errors import reason
from gs_core.interfaces import Batch
from gs_core.predictions import kl_divergence, log_softmax
from gs_core.storage import DerivedTensor, StoredTensor, Tensor
from gs_hf.float64 import Float64
from gs_hf.folding import norm_folds
from gs_hf.precision import Streams, logits
from gs_hf.probing import HFProber
from gs_hf.running import Outputs, to_torch
from gs_hf.writers import compute, passing, writers

if TYPE_CHECKING:
    from gs_hf.block import HFBlock
    from gs_hf.model import HFModel

SLICE = 2**22
"""Elements of an embedding that are rotated at a time."""


class Residual:
    """The rotation of one model's residual stream. Raises ``ValueError`` saying why the model has none."""

    def __init__(self, model: "HFModel", rotation: LinearMap):
        why = rotation.objection(model.hidden)
        if why:
            raise ValueError(why)
        if model.blocks == [""]:
            raise ValueError("the whole model is treated as one block")
        self.model, self.rotation, self.active = model, rotation, True
        self.exact = rotation.as_float64()
        self._streams = Streams()
        self.divergence: float | None = None
        """See ``gs_core.Model.rotation_divergence``."""
        self.embedding = model.module.get_input_embeddings()
        head = model.module.get_output_embeddings()
        if head is None or not isinstance(head, torch.nn.Linear) or head.in_features != model.hidden:
            raise ValueError("its head is no linear layer on the residual stream")
        self.head: torch.nn.Linear = head
        self.head_name = next(f"{n}.weight" for n, m in model.module.named_modules() if m is head)
        self.embedding_name = next(f"{n}.weight" for n, m in model.module.named_modules() if m is self.embedding)
        self.tied = self.head_name in model.weights.tied
        self.norm_name, self.norm = self._final_norm()
        for name in {self.embedding_name, f"{self.norm_name}.weight"} | (set() if self.tied else {self.head_name}):
            places = model.naming.by_parameter.get(name, [])
            if len(places) != 1 or places[0].rows is not None:
                raise ValueError(f"'{name}' is stored as part of another tensor")
        for name, module in model.module.named_modules():
            if _is_norm(module, model.hidden) and not _rotates(module, rotation):
                raise ValueError(f"{name} ({type(module).__name__}) does not divide by the root mean square alone")

    def rotate_embedding(self) -> None:
        """Rotate the outputs of the module's embedding from now on."""
        self.embedding.register_forward_hook(lambda m, i, out: self._embedded(out))

    def _embedded(self, out: torch.Tensor) -> torch.Tensor | None:
        rotation = self.exact if out.dtype == torch.float64 else self.rotation
        return rotation.apply(out) if self.active else None

    def _final_norm(self) -> tuple[str, torch.nn.Module]:
        inside = tuple(f"{block}." for block in self.model.blocks)
        found = [
            (name, module)
            for name, module in self.model.module.named_modules()
            if _is_norm(module, self.model.hidden) and not name.startswith(inside)
        ]
        if len(found) != 1:
            raise ValueError(f"{len(found)} norms lie outside its blocks, not one before the head")
        return found[0]

    # --- a block ---------------------------------------------------------------------------------------------

    def enter(self, block: "HFBlock", batch: Batch) -> None:
        """Rotate a loaded block and verify it on real activations. Raises ``CheckpointError``."""
        with block.verifying():
            self.active = False
            try:
                prober = HFProber(block, self._with_hidden(batch, self.exact.undo))
                outputs = compute(prober)
                entering = self._entering(prober, outputs) if self._is_last(block) else None
                writing = writers(prober)
                norms = _reading_norms(prober, writing)
                before = self._streams.before(block.index, prober.batch[0]) if self.model.float64 else None
                exact = None if before is None else block.compute(prober.batch[0], before[0])
                predicted = None if exact is None or entering is None else self._entering(prober, exact)
            finally:
                self.active = True
            self._rewrite(block, self.exact, norms, writing)
            prober.batch = self._with_hidden(prober.batch, self.exact.apply)
            self._verify(block, prober, entering)
        self._rewrite(block, self.rotation, norms, writing)
        if before is not None and exact is not None:
            working = block.compute(prober.batch[0], before[1])
            self._streams.after(block.index, prober.batch[0], exact, working)
            if predicted is not None:
                self.divergence = self._divergence(prober, predicted, working)

    def _divergence(self, prober: HFProber, predicted: torch.Tensor, working: Outputs) -> float:
        """Divergence of the rotated model in working precision from the float model.

        predicted: the input of the float model's head. working: the output of the last rotated block.
        """
        name = self.embedding_name if self.tied else self.head_name
        head = self.model.checkpoint[self.model.naming.by_parameter[name][0].source]
        weight = (self.norm.weight + _offset(self.norm)).cpu()
        with self._plain_norm():
            entering = self._entering(prober, working)

        def rotated() -> Iterator[torch.Tensor]:
            return (self.rotation.apply(part.float() * weight) for part in _rows(head))

        exact = log_softmax(logits(predicted, lambda: _rows(head)).numpy())
        return float(kl_divergence(exact, log_softmax(logits(entering, rotated).numpy())).mean())

    def _is_last(self, block: "HFBlock") -> bool:
        return block.index == len(self.model.blocks) - 1

    def _rewrite(self, block: "HFBlock", rotation: LinearMap, norms: "list[Reading]", writing: list[str]) -> None:
        """Rotate the parameters that read and write the stream, in the block's current precision."""
        for name, sites, offset in norms:
            weight = block.parameter(f"{name}.weight")
            change_inputs(block, sites, _reading(rotation, weight + offset), block.parameter)
            weight.fill_(1.0 - offset)
            block.changed |= {f"{name}.weight", *(p for site in sites for p, _ in block.model.found.keys_at[site])}
        for parameter in writing:
            self._rotate_rows(block, rotation, parameter)

    def _rotate_rows(self, block: "HFBlock", rotation: LinearMap, parameter: str) -> None:
        value = block.parameter(parameter)
        rows = value if parameter in self.model.found.transposed else value.transpose(-1, -2)
        for matrix in rows if rows.ndim > 2 else [rows]:
            for start in range(0, matrix.shape[0], max(1, SLICE // matrix.shape[1])):
                part = matrix[start : start + max(1, SLICE // matrix.shape[1])]
                part.copy_(rotation.apply(part.contiguous()))
        block.changed.add(parameter)
        bias = parameter.removesuffix("weight") + "bias"
        if parameter.endswith(".weight") and bias in block.parameters:
            value = block.parameter(bias)
            value.copy_(rotation.apply(value))
            block.changed.add(bias)

    def _with_hidden(self, batch: Batch, change: Change) -> Batch:
        """The batch with a changed residual stream, float64 if blocks run in float64. The first block has no stream."""
        tokens, previous = batch
        if previous is None:
            return batch
        hidden = astype(to_torch(previous["hidden"]), "float64" if self.model.float64 else "float32")
        return tokens, {**previous, "hidden": to_raw(change(hidden))}

    def _verify(self, block: "HFBlock", prober: HFProber, entering: torch.Tensor | None) -> None:
        """Compare the rotated block with the float block. Raises ``CheckpointError``."""
        outputs = compute(prober)
        changes = [unexplained_change(prober.base.hidden, self.exact.undo(outputs["hidden"]))]
        if entering is not None:
            weight, offset = self.norm.weight.clone(), _offset(self.norm)
            with self._plain_norm():
                rotated = self.exact.undo(self._entering(prober, outputs))
            changes.append(unexplained_change(entering, rotated * (weight.to(rotated.dtype) + offset)))
        for change in changes:
            if not change <= EQUIVALENCE_TOLERANCE:
                raise CheckpointError(
                    f"{block.name}: a rotation of the residual stream would change the function of this block "
                    f"(a channel changes by {change:.1e}). Leave the rotation out (for hadamard set r1: false)"
                )

    @contextmanager
    def _plain_norm(self) -> Iterator[None]:
        """While active, the final norm multiplies by one."""
        weight = self.norm.weight.clone()
        self.norm.weight.data.fill_(1.0 - _offset(self.norm))
        try:
            yield
        finally:
            self.norm.weight.data.copy_(weight)

    def _entering(self, prober: HFProber, outputs: Outputs) -> torch.Tensor:
        """What enters the head when the last block returns ``outputs``; the head itself is not loaded for that."""
        runner = self.model.runner
        assert runner is not None
        with prober.block.precision():
            return runner.enters(self.head, prober.batch[0], outputs)

    # --- what lies outside the blocks ------------------------------------------------------------------------

    def rewrite(self, tensors: Iterable[tuple[str, StoredTensor | DerivedTensor]]) -> Iterator[tuple[str, Tensor]]:
        """The tensors outside the blocks as they are written; a tied head is written on its own."""
        sources = self.model.naming.by_parameter
        embedding, norm = sources[self.embedding_name][0].source, sources[f"{self.norm_name}.weight"][0].source
        head = None if self.tied else sources[self.head_name][0].source
        weight = astype(to_torch(self.model.checkpoint[norm].read()), "float32")
        offset = _offset(self.norm)
        for name, tensor in tensors:
            if name == embedding:
                yield name, self._rotated(name, tensor, None)
                if self.tied:
                    yield self.head_name, self._rotated(self.head_name, tensor, weight + offset)
            elif name == head:
                yield name, self._rotated(name, tensor, weight + offset)
            elif name == norm:
                yield name, to_raw(astype(torch.full_like(weight, 1.0 - offset), tensor.dtype))
            else:
                yield name, tensor

    def _rotated(self, name: str, tensor: StoredTensor | DerivedTensor, scale: torch.Tensor | None) -> DerivedTensor:
        """``(rows, hidden)`` rotated, some rows at a time."""

        def slices() -> Iterator[RawTensor]:
            for part in _rows(tensor):
                part = part.float() if scale is None else part.float() * scale
                yield to_raw(astype(self.rotation.apply(part), tensor.dtype))

        def make() -> RawTensor:
            data = np.concatenate([raw.data for raw in slices()])
            return RawTensor(tensor.dtype, tuple(tensor.shape), data)

        return DerivedTensor(name, tensor.dtype, tuple(tensor.shape), make, slices)


def _reading(rotation: LinearMap, norm: torch.Tensor) -> Change:
    """Maps the rows of a weight that reads the stream through a norm with that weight."""
    return lambda rows: rotation.apply(rows * norm)


def _rows(tensor: StoredTensor | DerivedTensor) -> Iterator[torch.Tensor]:
    """Slices of rows of a matrix in the checkpoint: at most ``SLICE`` elements each, and at least one row."""
    rows, columns = tensor.shape
    step = max(1, SLICE // columns)
    for start in range(0, rows, step):
        # Mapped again for each slice: this releases the memory of the previous slice.
        yield to_torch(tensor.map())[start : start + step]


def untied(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of a model whose head is written on its own."""
    return {
        key: False if key == "tie_word_embeddings" else untied(value) if isinstance(value, dict) else value
        for key, value in config.items()
    } | ({"tie_word_embeddings": False} if "model_type" in config else {})


# --- norms ---------------------------------------------------------------------------------------------------


def _is_norm(module: torch.nn.Module, hidden: int) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1 and weight.shape[0] == hidden and not list(module.children())


def _alone(module: torch.nn.Module, value: float) -> torch.nn.Module:
    """A copy of a small module with every parameter one number."""
    alone = copy.deepcopy(module)
    for name, parameter in alone._parameters.items():
        if parameter is not None:
            fill = value if name == "weight" else 0.0
            alone._parameters[name] = torch.nn.Parameter(torch.full(parameter.shape, fill), requires_grad=False)
    return alone


def _rotates(norm: torch.nn.Module, rotation: LinearMap) -> bool:
    """Whether, its own weight apart, it does the same in a rotated basis."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, norm.weight.shape[0], generator=random, dtype=torch.float64) + 1.0
    alone, rotation = _alone(norm, 1.0), rotation.as_float64()
    try:
        with Float64():
            return equivalent(rotation.apply(alone(x)), alone(rotation.apply(x)))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{type(norm).__name__} does not take one tensor: {reason(error)}") from None


def _offset(norm: torch.nn.Module) -> float:
    """0 for a norm that multiplies by its weight, 1 for one that multiplies by 1 + weight."""
    return 1.0 if bool(_alone(norm, 0.0)(torch.ones(1, norm.weight.shape[0])).any()) else 0.0


Reading = tuple[str, tuple[str, ...], float]
"""A norm whose input is the residual stream, the sites that it feeds, and its offset."""


def _reading_norms(prober: HFProber, writing: list[str]) -> list[Reading]:
    """Every norm that reads the stream."""
    block = prober.block
    root = block.model.module.get_submodule(block.prefix.rstrip("."))
    inputs: dict[str, torch.Tensor] = {}
    names = {m: block.prefix + n for n, m in root.named_modules() if _is_norm(m, block.model.hidden)}

    def note(module: torch.nn.Module, given: tuple) -> None:
        inputs.setdefault(names[module], given[0].clone())

    handles = [module.register_forward_pre_hook(note) for module in names]
    try:
        silent = passing(prober, writing)
    finally:
        for handle in handles:
            handle.remove()
    folds = {fold.producer: fold.sites for fold in norm_folds(prober, {})}
    return [
        (name, folds[name], block.norms[name].offset)
        for name, x in inputs.items()
        if name in folds and x.shape == silent.shape and equivalent(silent, x)
    ]
