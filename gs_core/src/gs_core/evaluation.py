"""Perplexity of a folder, float or quantized, one block in memory at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gs_core import calibration
from gs_core.api import Opened, Source, open_source
from gs_core.arrays import RawTensor, to_raw
from gs_core.comparing import is_finite
from gs_core.errors import CalibrationError, CheckpointError, PlanError
from gs_core.interfaces import Adapter, Batch, Block, OnSite, StaticInput
from gs_core.linear_map import LinearMap
from gs_core.stages import Progress
from gs_core.watching import Cached, fake_quantizer
from gs_schemas import QuantizationScheme


@dataclass(frozen=True)
class Evaluation:
    """``perplexity``: exp of the mean next-token cross entropy over ``windows`` windows of ``seq_len`` tokens."""

    model: str
    perplexity: float
    windows: int
    seq_len: int
    scheme: str


def evaluate(
    model: Source,
    text: Any,
    *,
    seq_len: int = 256,
    windows: int = 64,
    tokenizer: Any = None,
    device: str = "cpu",
    adapter: str | Adapter | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, block, blocks: None,
) -> Evaluation:
    """Perplexity on the first ``windows`` windows of a text. Each window is predicted separately, in float32.

    model: a folder or a live model. text: any source of ``gs_core.calibration.load``. tokenizer: replaces the model's.

    A quantized folder computes with dequantized weights. Activations and caches are fake quantized by its schemes, with
    scales of run time or with the stored scales. Raises ``CalibrationError`` if the text is too short, and
    ``CheckpointError`` if the output of a block or the predictions are not finite.
    """
    text = calibration.locate(text)
    running = RunningModel(model, device, adapter, trust_remote_code)
    batches = running.batches(text, windows, seq_len, tokenizer)
    states: list[State] = [None] * len(batches)
    blocks = len(running.blocks)
    for index in range(blocks):
        progress("evaluate", index, blocks)
        block = running.block(index, (batches[0], states[0]))
        states = [block(batch, state) for batch, state in zip(batches, states, strict=True)]
    progress("evaluate", blocks, blocks)
    losses = [running.model.losses(batch, state or {}) for batch, state in zip(batches, states, strict=True)]
    return running.evaluation(np.concatenate(losses))


State = Mapping[str, RawTensor] | None
"""The output of a block for one batch; None before the first block."""
RunBlock = Callable[[np.ndarray, State], dict[str, RawTensor]]


class RunningModel:
    """Runs a model block by block, with one block in memory. A quantized model computes like in an engine."""

    def __init__(self, source: Source, device: str, adapter: str | Adapter | None, trust_remote_code: bool = False):
        self.opened = open_source(source, device, adapter, trust_remote_code)
        self.model = self.opened.model
        self.name = str(source) if isinstance(source, str | Path) else self.model.name

    @property
    def blocks(self) -> Sequence[str]:
        return self.model.blocks

    def batches(self, text: Any, windows: int, seq_len: int, tokenizer: Any) -> list[np.ndarray]:
        """The first windows of a text, int64 ``(batch, seq_len)`` each. tokenizer: None for the model's own."""
        tokens = _windows(text, windows, seq_len, self.model if tokenizer is None else tokenizer)
        calibration.check(tokens, self.model.vocabulary())
        limit = self.model.max_tokens()
        if limit is not None and seq_len > limit:
            raise PlanError([f"windows of {seq_len} tokens: the model takes at most {limit}; lower `seq_len=`"])
        return calibration.batches(tokens)

    def block(self, index: int, probe: Batch) -> RunBlock:
        """Load a block. Returns a function that runs it and raises ``CheckpointError`` if the output is not finite."""
        block = self.model.block(index, probe)
        block.online = online(block, self.opened)
        on_site = _on_site(block, self.opened)

        def run(tokens: np.ndarray, previous: State) -> dict[str, RawTensor]:
            outputs = block.run(tokens, previous, on_site)
            if not is_finite(outputs["hidden"]):
                raise CheckpointError(
                    f"{self.name}: the output of {block.name} contains NaN or infinity; the blocks before it are "
                    "finite. Check the weights and scales of this block, and quantize the model again"
                )
            return {name: to_raw(array) for name, array in outputs.items()}

        return run

    def evaluation(self, losses: np.ndarray) -> Evaluation:
        """Perplexity from the losses of all tokens, float64 ``(windows, seq_len - 1)``."""
        if not np.isfinite(losses).all():
            raise CheckpointError(
                f"{self.name}: the predictions contain NaN or infinity, but the output of every block is finite. "
                "Check the last norm and the head, and quantize the model again"
            )
        scheme = self.opened.schemes() or "float"
        return Evaluation(self.name, float(np.exp(losses.mean())), len(losses), losses.shape[1] + 1, scheme)


def _windows(text: Any, windows: int, seq_len: int, tokenizer: Any) -> np.ndarray:
    """The first windows, one after another: the convention of perplexity."""
    found = calibration.stream(text, windows * seq_len, tokenizer)
    if found.ndim == 2:
        found = found[:, :seq_len].reshape(-1)
    if len(found) < windows * seq_len:
        raise CalibrationError(
            f"the text has {len(found)} tokens, {windows} windows of {seq_len} need {windows * seq_len}; "
            "give a longer text, or lower `windows=` or `seq_len=`"
        )
    return np.ascontiguousarray(found[: windows * seq_len].reshape(windows, seq_len), dtype=np.int64)


def online(block: Block, opened: Opened) -> dict[str, LinearMap]:
    """The maps that the checkpoint leaves to be computed, by site."""
    numbers, caches = opened.numbers, opened.caches
    found = {site.name: [numbers[n].online for n in site.layers if n in numbers] for site in block.sites.values()}
    for cache in opened.model.caches:
        if cache.block == block.index and cache.name in caches:
            found |= {site.name: [caches[cache.name].online] for site in cache.sites if site.kind == "key"}
    return {site: maps[0] for site, maps in found.items() if maps and maps[0] is not None}


def _on_site(block: Block, opened: Opened) -> OnSite:
    sites: dict[str, tuple[QuantizationScheme, StaticInput | None]] = {}
    for site in block.sites.values():
        known = [opened.numbers.get(layer) for layer in site.layers]
        if known and known[0] is not None and all(n is not None for n in known):
            sites[site.name] = (known[0].scheme, known[0].inputs)
    caches: dict[str, Cached] = {}
    for cache in opened.model.caches:
        quantized = opened.caches.get(cache.name)
        if quantized is not None and cache.block == block.index:
            for site in cache.sites:
                if site.kind in quantized.static:
                    caches[site.name] = (site, quantized.args, quantized.static[site.kind])
    return fake_quantizer(sites, caches, block.online)
