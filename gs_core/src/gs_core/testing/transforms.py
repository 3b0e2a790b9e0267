"""What is folded into a block, or left at its sites, keeps its function and can be taken back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from gs_core.arrays import device, namespace
from gs_core.comparing import channel_error, unexplained_change
from gs_core.interfaces import Batch, Block, ChannelScale, Fold, FoldTransform, Model, SiteTransform, Transform
from gs_core.linear_map import LinearMap
from gs_core.testing.opened import Case, OpenedSuite, contents
from gs_core.testing.suite import after, forward, numpy, sentence

MAX_CHANNEL_ERROR = 1e-3
"""Largest ``channel_error`` of equivalent blocks in working precision."""


class TransformsSuite(OpenedSuite):
    """Folds, maps and rotations, all that the model offers."""

    def test_folds_keep_the_function(self, block: Block, batch: Batch) -> None:
        before, inputs = forward(block, batch), self.inputs(block, batch)
        for fold in block.folds():
            transform = random_scale(fold, block)
            applied, undo = block.apply(transform)
            assert isinstance(applied, ChannelScale)
            assert np.allclose(numpy(applied.scale), numpy(transform.scale), rtol=2**-7), "but for a norm's rounding"
            assert channel_error(before, forward(block, batch)) <= MAX_CHANNEL_ERROR, fold.producer
            scale = numpy(fold.expand(applied.scale))
            shift = 0 if applied.shift is None else numpy(fold.expand(applied.shift))
            for name, x in self.inputs(block, batch).items():
                wanted = (inputs[name] - shift) / scale if name in fold.sites else inputs[name]
                assert channel_error(wanted, x) <= MAX_CHANNEL_ERROR, f"{fold.producer} at {name}"
            undo()

    def test_maps_keep_the_function(self, block: Block, batch: Batch) -> None:
        """Where channels may be mixed, and at every site that takes a map to be computed at run time."""
        before, inputs = forward(block, batch), self.inputs(block, batch)
        for transform in random_maps(block):
            undo = tried(block, transform)
            if undo is None:
                continue
            assert channel_error(before, forward(block, batch)) <= MAX_CHANNEL_ERROR, transform.where
            for name, x in self.inputs(block, batch).items():
                wanted = transform.map.apply(inputs[name]) if name in transform.sites else inputs[name]
                assert channel_error(wanted, x) <= MAX_CHANNEL_ERROR, f"{transform.where} at {name}"
            undo()

    def test_a_map_of_keys_is_seen_and_undone(self, block: Block, batch: Batch) -> None:
        """What is cached has gone through it; what attention computes with has come back."""

        def seen() -> dict[str, np.ndarray]:
            found: dict[str, np.ndarray] = {}
            block.run(*batch, lambda name, x: found.update({name: numpy(x).copy()}))
            return found

        before = seen()
        for transform in random_maps(block):
            if isinstance(transform, SiteTransform) and block.sites[transform.site].kind == "key":
                undo = tried(block, transform)
                assert undo is not None, f"{transform.site} is there to be quantized"
                found = seen()
                assert list(found) == list(before)
                for name, x in before.items():
                    wanted = transform.map.apply(x) if name == transform.site else x
                    assert channel_error(wanted, found[name]) <= MAX_CHANNEL_ERROR, name
                undo()

    def test_nothing_folds_behind_a_map(self, block: Block) -> None:
        sites = {site for fold in block.folds() for site in fold.sites}
        for transform in random_maps(block):
            if isinstance(transform, SiteTransform) and transform.site in sites and tried(block, transform):
                fold = next(fold for fold in block.folds() if transform.site in fold.sites)
                with pytest.raises(ValueError, match="run time"):
                    block.apply(random_scale(fold, block))

    def test_undoing_a_fold_restores_every_bit(self, block: Block, batch: Batch) -> None:
        def state() -> dict[str, Any]:
            weights = {name: numpy(layer.weight()).tobytes() for name, layer in block.layers.items()}
            rest = {name: contents(tensor) for name, tensor in block.rest(())}
            return {"output": forward(block, batch).tobytes(), "weights": weights, "rest": rest}

        before, folds = state(), block.folds()
        for fold in folds:
            block.apply(random_scale(fold, block))[1]()
            assert state() == before, fold.producer
        for transform in random_maps(block):
            undo = tried(block, transform)
            if undo is not None:
                undo()
            assert state() == before, transform.where
        undos = [block.apply(random_scale(fold, block))[1] for fold in folds]
        for undo in reversed(undos):
            undo()
        assert state() == before, "all of them, the last one first"

    def test_verifying_leaves_the_block_as_it_was(self, block: Block, batch: Batch) -> None:
        """Transforms are applied and taken back within; the output is float64 or as precise as ever."""
        before = forward(block, batch).tobytes()
        with block.verifying():
            expected = block.run(*batch)["hidden"]
            for transform in [*map(partial(random_scale, block=block), block.folds()), *random_maps(block)]:
                undo = tried(block, transform)
                if undo is not None:
                    undo()
            assert unexplained_change(expected, block.run(*batch)["hidden"]) == 0.0
        assert forward(block, batch).tobytes() == before

    def test_a_rotated_stream_keeps_the_function(self, case: Case, model: Model, tokens: np.ndarray) -> None:
        """Every block takes and returns the rotated stream, and the losses are what they were."""
        rotation, wanted = random_stream(model), self.losses(model, tokens)
        batch: Batch = (tokens, None)
        outputs = []
        for index in range(len(model.blocks)):
            outputs.append(forward(model.block(index, batch), batch))
            batch = after(model.block(index, batch), batch)
        rotated = case[1].open(case[0], self.device)
        try:
            rotated.rotate(rotation)
        except ValueError as refusal:
            assert sentence(str(refusal))
            return
        assert rotated.layers == model.layers
        batch = (tokens, None)
        for index, output in enumerate(outputs):
            got = forward(rotated.block(index, batch), batch)
            assert channel_error(rotation.apply(output), got) <= MAX_CHANNEL_ERROR
            batch = after(rotated.block(index, batch), batch)
        assert np.allclose(self.losses(rotated, tokens), wanted, rtol=self.tolerance, atol=self.tolerance)


def random_scale(fold: Fold, block: Block) -> ChannelScale:
    """Scales between 1/4 and 4, and where the fold takes them shifts between -1 and 1."""
    weight = next(iter(block.layers.values())).weight()
    random = np.random.default_rng(0)
    scale, shift = (
        namespace(weight).asarray(values.astype(np.float32), device=device(weight))
        for values in (2 ** random.uniform(-2, 2, fold.channels), random.uniform(-1, 1, fold.channels))
    )
    return ChannelScale(fold, scale, shift if fold.shifts else None)


def random_stream(model: Model) -> LinearMap:
    """A rotation of the residual stream, with signs."""
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.standard_normal((max(model.hidden, 1),) * 2))[0]
    return LinearMap((rotation,), random.choice([-1.0, 1.0], len(rotation)).astype(np.float32), orthogonal=True)


def random_maps(block: Block) -> list[FoldTransform | SiteTransform]:
    """A mixing of every fold's heads, a scaled Kronecker pair for every site of layers, and a mixing of each cached
    key's heads."""
    random = np.random.default_rng(0)

    def factor(size: int) -> np.ndarray:
        return (np.linalg.qr(random.standard_normal((size, size)))[0] * random.uniform(0.5, 2, size)).astype(np.float32)

    mixing = [FoldTransform(fold, LinearMap((factor(fold.head),))) for fold in block.folds() if fold.head > 1]
    found: list[FoldTransform | SiteTransform] = [*mixing]
    for site in (site for site in block.sites.values() if site.layers):
        left = next(size for size in range(int(site.features**0.5), 0, -1) if site.features % size == 0)
        scale = (2 ** random.uniform(-1, 1, site.features)).astype(np.float32)
        pair = LinearMap((factor(left), factor(site.features // left)), scale)
        found.append(SiteTransform(site.name, pair))
    for site in (site for site in block.sites.values() if site.kind == "key"):
        found.append(SiteTransform(site.name, LinearMap((factor(site.features // site.heads),))))
    return found


def tried(block: Block, transform: Transform) -> Callable[[], None] | None:
    """What takes it back, or None where the block says that it cannot take it."""
    try:
        return block.apply(transform)[1]
    except ValueError as refusal:
        assert sentence(str(refusal))
        return None
