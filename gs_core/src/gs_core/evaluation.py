"""Perplexity of a folder, float or quantized, one block in memory at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gs_core import calibration
from gs_core.api import Opened, Source, open_source
from gs_core.arrays import RawTensor, to_raw
from gs_core.errors import CalibrationError, PlanError
from gs_core.interfaces import Adapter, Block, OnSite, StaticInput
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
    """Perplexity on the first ``windows`` windows of a text, each judged on its own, in float32.

    model: a folder or a live model. text: any source of ``gs_core.calibration.load``. tokenizer: replaces the model's.

    A quantized folder is computed as its numbers say: dequantized weights, activations and caches quantized at run
    time or with the stored scales. Raises ``CalibrationError`` when the text is too short.
    """
    text = calibration.locate(text)
    opened = open_source(model, device, adapter, trust_remote_code)
    tokens = _windows(text, windows, seq_len, opened.model if tokenizer is None else tokenizer)
    calibration.check(tokens, opened.model.vocabulary())
    limit = opened.model.max_tokens()
    if limit is not None and seq_len > limit:
        raise PlanError([f"windows of {seq_len} tokens: the model takes at most {limit}; lower --seq-len"])
    batches = calibration.batches(tokens)
    states: list[dict[str, RawTensor] | None] = [None] * len(batches)
    blocks = len(opened.model.blocks)
    for index in range(blocks):
        progress("evaluate", index, blocks)
        block = opened.model.block(index, (batches[0], states[0]))
        block.online = online(block, opened)
        on_site = _on_site(block, opened)
        for number, batch in enumerate(batches):
            outputs = block.run(batch, states[number], on_site)
            states[number] = {name: to_raw(array) for name, array in outputs.items()}
    progress("evaluate", blocks, blocks)
    losses = [opened.model.losses(batch, state or {}) for batch, state in zip(batches, states, strict=True)]
    mean = float(np.mean(np.concatenate(losses)))
    found = [numbers.scheme for numbers in opened.numbers.values()]
    found += [QuantizationScheme(kv_cache=numbers.args) for numbers in opened.caches.values()]
    schemes = sorted({scheme.describe() for scheme in found})
    name = str(model) if isinstance(model, str | Path) else opened.model.name
    return Evaluation(name, float(np.exp(mean)), windows, seq_len, "; ".join(schemes) or "float")


def _windows(text: Any, windows: int, seq_len: int, tokenizer: Any) -> np.ndarray:
    """The first windows, one after another: the convention of perplexity."""
    found = calibration.stream(text, windows * seq_len, tokenizer)
    if found.ndim == 2:
        found = found[:, :seq_len].reshape(-1)
    if len(found) < windows * seq_len:
        raise CalibrationError(
            f"the text has {len(found)} tokens, {windows} windows of {seq_len} need {windows * seq_len}; "
            "give a longer text, or lower --windows or --seq-len"
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
