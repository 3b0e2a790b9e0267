"""Divergence of a quantized model's predictions from the float model's: of the whole model and of each block.

Both models run block by block, with one block of each in memory. docs/evaluating.md explains the figures.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gs_core import calibration, memory
from gs_core.api import Source
from gs_core.arrays import RawTensor, from_raw, to_raw
from gs_core.errors import PlanError
from gs_core.evaluation import Evaluation, RunningModel, State
from gs_core.interfaces import Adapter
from gs_core.journal import REPORT
from gs_core.linear_map import LinearMap
from gs_core.planning import load_algorithm
from gs_core.predictions import cross_entropy, kl_divergence, log_probabilities, tiles
from gs_core.stages import Progress
from gs_schemas import Recipe, SchemaError

MIN_SHARE, MIN_RATIO, MIN_DIVERGENCE = 0.25, 5.0, 1e-3
"""A block is bad if its divergence is at least this share of the sum over blocks, this multiple of the median, and this
many nats."""
MAX_BASIS_ERROR = 1.0
"""Largest squared error, relative to the float stream, of a residual stream in the same basis. A rotated stream has
about 2."""


@dataclass(frozen=True)
class BlockComparison:
    """Quantization error of one block. The figures are None if the two residual streams cannot be compared.

    Attributes:
        block: name of the block.
        sqnr: signal-to-quantization-noise ratio of the output for the float model's input, in dB, mean over channels.
            Infinite if the outputs are equal.
        propagated_sqnr: the same, for the output of the quantized blocks before as input.
        divergence: KL divergence of the predictions if only this block is quantized, in nats per token.
    """

    block: str
    sqnr: float | None
    propagated_sqnr: float | None
    divergence: float | None


@dataclass(frozen=True)
class Comparison:
    """Comparison of a quantized model with the float model.

    Attributes:
        model, against: perplexity of the quantized model and of the float model.
        divergence: KL divergence of the predictions from the float model's, in nats, mean over tokens.
        standard_error: standard error of that mean, from the means of the windows; None for a single window.
        divergence_p99: 99th percentile over tokens.
        top1_agreement: share of tokens for which both models give the highest probability to the same token.
        blocks: one entry for each block; empty without ``by_block``.
        notes: messages about bad blocks.
    """

    model: Evaluation
    against: Evaluation
    divergence: float
    standard_error: float | None
    divergence_p99: float
    top1_agreement: float
    blocks: tuple[BlockComparison, ...]
    notes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Perplexity divided by the float model's."""
        return self.model.perplexity / self.against.perplexity


def compare(
    model: str | Path,
    against: Source,
    text: Any,
    *,
    seq_len: int = 256,
    windows: int = 64,
    tokenizer: Any = None,
    by_block: bool = True,
    device: str = "cpu",
    adapter: str | Adapter | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, block, blocks: None,
) -> Comparison:
    """Compare the predictions of ``model`` with those of the float model ``against``, on the windows of ``evaluate``.

    Each batch runs through one float and two quantized copies of every block. The first batch (at most 1024 tokens, or
    one window) also measures the divergence of single blocks, with ``N (N - 1) / 2`` runs of a block for ``N`` blocks.
    For 30 blocks and the default windows this takes about four times as long as ``evaluate``, and without ``by_block``
    twice as long.

    Args:
        model: a folder.
        against: a folder or a live model.
        text: any source of ``gs_core.calibration.load``.
        tokenizer: replaces the float model's tokenizer.
        by_block: False leaves ``blocks`` empty.

    Raises:
        PlanError: the models have different vocabularies or numbers of blocks.
        Other errors of ``evaluate``.
    """
    text = calibration.locate(text)
    quantized, original = (RunningModel(source, device, adapter, trust_remote_code) for source in (model, against))
    _check_comparable(quantized, original)
    batches = original.batches(text, windows, seq_len, tokenizer)
    bases = _Bases(Path(model), original.model.hidden)
    floats: list[State] = [None] * len(batches)
    states: list[State] = [None] * len(batches)
    alone: list[State] = []
    """Output of this block for the first batch, one entry for each earlier or equal block that alone is quantized."""
    errors: list[tuple[ChannelErrors, ChannelErrors]] = []
    blocks = len(original.blocks)
    for index in range(blocks):
        progress("compare", index, blocks)
        float_block = original.block(index, (batches[0], floats[0]))
        block = quantized.block(index, (batches[0], states[0]))
        alone = [float_block(batches[0], state) for state in alone]
        own, propagated = ChannelErrors(), ChannelErrors()
        for number, batch in enumerate(batches):
            given = bases.to_quantized(floats[number])
            floats[number], states[number] = float_block(batch, floats[number]), block(batch, states[number])
            if index == number == 0:
                bases.choose(floats[0], states[0])
            if not (by_block and bases.related):
                continue
            propagated.update(floats[number], bases.to_float(states[number]))
            returned = bases.to_float(block(batch, given) if index else states[number])
            own.update(floats[number], returned)
            if number == 0:
                alone.append(returned)
        errors.append((own, propagated))
        memory.release()
    progress("compare", blocks, blocks)
    predictions = _Predictions(original, quantized, batches)
    for number in range(len(batches)):
        predictions.update(number, floats[number], states[number], alone if number == 0 else ())
    if not by_block:
        found, notes = [], []
    elif not bases.related:
        found = [BlockComparison(name, None, None, None) for name in original.blocks]
        notes = [
            "the residual streams of the two models are in different bases, so blocks cannot be compared. Did another "
            "tool rotate the model?"
        ]
    else:
        found = [
            BlockComparison(name, own.sqnr(), propagated.sqnr(), divergence)
            for name, (own, propagated), divergence in zip(original.blocks, errors, predictions.alone, strict=True)
        ]
        notes = bad_blocks(found)
    return predictions.comparison(tuple(found), tuple(notes))


def _check_comparable(quantized: RunningModel, original: RunningModel) -> None:
    ids = [running.model.vocabulary() for running in (quantized, original)]
    if ids[0] != ids[1]:
        raise PlanError(
            [
                f"{quantized.name} has a vocabulary of {ids[0]} tokens, {original.name} of {ids[1]}: the divergence of "
                "their predictions is not defined. For `against=` give the float model that was quantized"
            ]
        )
    blocks = [len(running.blocks) for running in (quantized, original)]
    if blocks[0] != blocks[1]:
        raise PlanError(
            [
                f"{quantized.name} has {blocks[0]} blocks, {original.name} has {blocks[1]}: blocks cannot be compared. "
                "For `against=` give the float model that was quantized"
            ]
        )


def bad_blocks(blocks: Sequence[BlockComparison]) -> list[str]:
    """A note for each block with a far larger divergence than the others, the largest first."""
    known = sorted((b for b in blocks if b.divergence is not None), key=lambda b: -(b.divergence or 0.0))
    values = [b.divergence or 0.0 for b in known]
    total, median = sum(values), float(np.median(values)) if values else 0.0
    return [
        f"{block.block}: divergence {value:.2g}, {100 * value / total:.0f} % of the sum over all blocks; the median is "
        f"{median:.2g}. {REPORT} has the errors of its layers. Give the worst layers more bits with overrides, or "
        f'keep the block in floating point: ignore: [lm_head, "{block.block}.*"]'
        for block, value in zip(known, values, strict=True)
        if value >= max(MIN_DIVERGENCE, MIN_SHARE * total, MIN_RATIO * median)
    ]


class ChannelErrors:
    """Signal and noise of every channel of the residual stream, summed over tokens."""

    def __init__(self) -> None:
        self._signal: np.ndarray | float = 0.0
        self._noise: np.ndarray | float = 0.0

    def update(self, wanted: State, got: State) -> None:
        expected, actual = _hidden(wanted), _hidden(got)
        tokens = tuple(range(expected.ndim - 1))
        self._signal = self._signal + (expected**2).sum(axis=tokens)
        self._noise = self._noise + ((actual - expected) ** 2).sum(axis=tokens)

    def sqnr(self) -> float:
        """Mean over the channels with signal and noise, in dB. Infinite if no channel has noise.

        A ratio of total powers would depend only on the few massive channels.
        """
        signal, noise = np.atleast_1d(self._signal), np.atleast_1d(self._noise)
        both = (signal > 0) & (noise > 0)
        return float(np.mean(10 * np.log10(signal[both] / noise[both]))) if both.any() else math.inf


class _Bases:
    """Maps between the bases of the two residual streams, which are equal or related by the recipe's rotation."""

    def __init__(self, folder: Path, hidden: int):
        self._rotation: LinearMap | None = None
        self._candidate = _rotation_of(folder, hidden)
        self.related = True

    def choose(self, expected: State, actual: State) -> None:
        """Choose the basis that fits the outputs of the first block."""
        wanted, got = _hidden(expected), _hidden(actual)
        found: dict[float, LinearMap | None] = {_relative(wanted, got): None}
        if self._candidate is not None:
            found[_relative(self._candidate.apply(wanted), got)] = self._candidate
        self._rotation, self.related = found[min(found)], min(found) < MAX_BASIS_ERROR

    def to_quantized(self, state: State) -> State:
        return state if self._rotation is None else _mapped(state, self._rotation.apply)

    def to_float(self, state: State) -> State:
        return state if self._rotation is None else _mapped(state, self._rotation.undo)


def _rotation_of(folder: Path, hidden: int) -> LinearMap | None:
    """The rotation of the residual stream by the recipe in the folder's report; ``None`` without one."""
    try:
        recipe = Recipe.parse(json.loads((folder / REPORT).read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError, SchemaError):
        return None  # a folder of another tool, or a float model
    rotations = (load_algorithm(spec.name, spec.options).residual(hidden) for spec in recipe.algorithms)
    return next((rotation for rotation in rotations if rotation is not None), None)


def _mapped(state: State, function: Any) -> State:
    return None if state is None else {**state, "hidden": to_raw(function(_hidden(state)).astype(np.float32))}


def _hidden(state: State) -> np.ndarray:
    assert state is not None
    return from_raw(state["hidden"]).astype(np.float64)


def _relative(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(np.sum((got - wanted) ** 2) / np.sum(wanted**2)) if wanted.shape == got.shape else math.inf


class _Predictions:
    """Compares predictions, a few tokens at a time."""

    def __init__(self, original: RunningModel, quantized: RunningModel, batches: Sequence[np.ndarray]):
        self._original, self._quantized, self._batches = original, quantized, batches
        self._losses: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        self._divergence: list[np.ndarray] = []
        self._agree: list[np.ndarray] = []
        self.alone: list[float] = []
        """Mean divergence if only one block is quantized, by block."""

    def update(self, number: int, floats: State, state: State, alone: Sequence[State]) -> None:
        """Add a batch. alone: outputs of the last block if only one block is quantized, by block."""
        tokens = self._batches[number]
        shape = tokens.shape[0], tokens.shape[1] - 1
        losses, divergence, agree = np.empty((2, *shape)), np.empty((1 + len(alone), *shape)), np.empty(shape, bool)
        for rows, columns in tiles(*shape, self._original.model.vocabulary()):
            targets = tokens[:, 1:][rows, columns].reshape(-1)
            wanted = self._logits(self._original, tokens, floats, rows, columns)
            for branch, got in enumerate([state, *alone]):
                running = self._original if branch else self._quantized
                logits = self._logits(running, tokens, got, rows, columns)
                part = _Tile(wanted, logits, targets)
                divergence[branch][rows, columns] = part.divergence.reshape(agree[rows, columns].shape)
                if not branch:
                    losses[:, rows, columns] = part.losses.reshape(2, *agree[rows, columns].shape)
                    agree[rows, columns] = part.agree.reshape(agree[rows, columns].shape)
        for known, new in zip(self._losses, losses, strict=True):
            known.append(new)
        self._divergence.append(divergence[0])
        self._agree.append(agree)
        self.alone += [float(each.mean()) for each in divergence[1:]]

    def _logits(
        self, running: RunningModel, tokens: np.ndarray, state: State, rows: slice, columns: slice
    ) -> np.ndarray:
        last: Mapping[str, RawTensor] = state or {}
        logits = running.model.logits(tokens, last, rows, columns)
        return logits.reshape(-1, logits.shape[-1])

    def comparison(self, blocks: tuple[BlockComparison, ...], notes: tuple[str, ...]) -> Comparison:
        floats, quantized = (np.concatenate(each) for each in self._losses)
        against, model = self._original.evaluation(floats), self._quantized.evaluation(quantized)
        divergence = np.concatenate(self._divergence)
        means = divergence.mean(axis=1)
        return Comparison(
            model,
            against,
            float(divergence.mean()),
            float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else None,
            float(np.percentile(divergence, 99)),
            float(np.concatenate(self._agree).mean()),
            blocks,
            notes,
        )


class _Tile:
    """Figures from two models' logits for the same tokens, float32 ``(tokens, vocabulary)``."""

    def __init__(self, expected: np.ndarray, actual: np.ndarray, targets: np.ndarray):
        count = len(targets)
        self.divergence, self.losses, self.agree = np.empty(count), np.empty((2, count)), np.empty(count, bool)
        for part, (wanted, got) in log_probabilities(expected, actual):
            self.divergence[part] = kl_divergence(wanted, got)
            self.losses[:, part] = [cross_entropy(each, targets[part]) for each in (wanted, got)]
            self.agree[part] = wanted.argmax(axis=-1) == got.argmax(axis=-1)
