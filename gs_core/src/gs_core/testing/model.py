"""What every model that an adapter opened owes the line."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from gs_core.arrays import FLOAT_DTYPES, Array, RawTensor, device, from_raw, namespace, to_raw
from gs_core.comparing import channel_error
from gs_core.interfaces import (
    Adapter,
    Batch,
    Block,
    ChannelScale,
    Fold,
    FoldTransform,
    Model,
    SiteTransform,
    Transform,
)
from gs_core.linear_map import LinearMap
from gs_core.proving import PROOF_TOLERANCE
from gs_core.storage import DerivedTensor, StoredTensor, Tensor
from gs_core.testing.suite import Suite, after, forward, numpy, sentence

Case = tuple[Any, Adapter, np.ndarray]


class LiveModelSuite(Suite):
    """Tests of a model that an adapter opened, whatever it was opened from.

    The fixture gives a source (a folder or a live object, small, since each test opens it; its weights large enough
    that every layer matters), the adapter, and token ids, int64 ``(batch, seq_len)``, that reach every site::

        class TestMine(AdapterSuite):
            @pytest.fixture
            def case(self, tmp_path):
                return write_my_model(tmp_path), MyAdapter(), np.arange(64).reshape(2, 32)
    """

    device: ClassVar[str] = "cpu"

    tolerance: ClassVar[float] = 1e-4
    """Relative error of float32 results that are equal but for the order of additions."""

    @pytest.fixture
    def case(self) -> Case:
        raise NotImplementedError("give the suite a fixture `case`: source, adapter, tokens")

    @pytest.fixture
    def model(self, case: Case) -> Model:
        source, adapter, _ = case
        return adapter.open(source, self.device)

    @pytest.fixture
    def tokens(self, case: Case) -> np.ndarray:
        return case[2]

    @pytest.fixture(params=["first", "last"])
    def position(self, request: pytest.FixtureRequest) -> str:
        """Which block a test looks at."""
        return request.param

    @pytest.fixture
    def batch(self, model: Model, tokens: np.ndarray, position: str) -> Batch:
        """What that block receives."""
        before = range(len(model.blocks) - 1) if position == "last" else range(0)
        batch: Batch = (tokens, None)
        for index in before:
            batch = after(model.block(index, batch), batch)
        return batch

    @pytest.fixture
    def block(self, model: Model, position: str, batch: Batch) -> Block:
        return model.block(0 if position == "first" else len(model.blocks) - 1, batch)

    # --- what it is made of ----------------------------------------------------------------------------------

    def test_layers_sites_and_blocks_agree(self, model: Model, tokens: np.ndarray) -> None:
        assert len({info.name for info in model.layers}) == len(model.layers) > 0
        assert not {info.name for info in model.layers} & set(model.kept), "a layer is not kept in floating point"
        found = []
        batch: Batch = (tokens, None)
        for index, name in enumerate(model.blocks):
            block = model.block(index, batch)
            assert (block.index, block.name) == (index, name)
            fed = [layer for site in block.sites.values() for layer in site.layers]
            assert all((site.kind == "input") == bool(site.layers) for site in block.sites.values())
            assert sorted(fed) == sorted(block.layers), "each layer is fed by one site"
            for layer in block.layers.values():
                assert layer.info.block == index
                assert block.sites[layer.site].features == layer.shape[1]
                found.append(layer.info)
            batch = after(block, batch)
        assert found == model.layers, "in the order of execution"

    def test_caches_and_sites_agree(self, model: Model, block: Block) -> None:
        assert len({cache.name for cache in model.caches}) == len(model.caches)
        assert model.caches or sentence(model.uncached), "it says why there are none"
        mine = [cache for cache in model.caches if cache.block == block.index]
        sites = [site for cache in mine for site in cache.sites]
        assert sites == [site for site in block.sites.values() if site.kind != "input"], "in the order of execution"
        assert all(site.heads > 0 and site.features % site.heads == 0 for site in sites)
        for cache in mine:
            kinds = [site.kind for site in cache.sites]
            assert {"key", "value"} <= set(kinds)
            assert len(set(kinds)) == len(kinds)
            assert "unrotated_key" in kinds or sentence(cache.rotated_only)

    def test_every_kept_module_has_a_reason(self, model: Model) -> None:
        assert all(sentence(reason) for reason in model.kept.values())

    def test_a_block_that_will_not_run_has_the_same_weights(self, model: Model, block: Block) -> None:
        idle = model.block(block.index, None)
        assert list(idle.layers) == list(block.layers)
        for name, layer in idle.layers.items():
            assert np.array_equal(numpy(layer.weight()), numpy(block.layers[name].weight()))

    def test_weights_are_float32_copies(self, block: Block) -> None:
        for layer in block.layers.values():
            weight = layer.weight()
            assert weight.shape == layer.shape
            assert weight.dtype == namespace(weight).float32
            assert layer.dtype in FLOAT_DTYPES
            kept = numpy(weight).copy()
            weight *= 0
            assert np.array_equal(numpy(layer.weight()), kept)
            assert np.array_equal(numpy(layer.view()), kept)
            assert layer.view().dtype == weight.dtype

    # --- running ---------------------------------------------------------------------------------------------

    def test_running_twice_is_the_same(self, block: Block, batch: Batch) -> None:
        once, again = forward(block, batch), forward(block, batch)
        assert once.shape[:2] == batch[0].shape
        assert np.array_equal(once, again)

    def test_each_site_is_seen_once_and_in_order(self, block: Block, batch: Batch) -> None:
        seen: list[tuple[str, Array]] = []
        forward(block, batch, lambda name, x: seen.append((name, x)))
        assert [name for name, _ in seen] == list(block.sites)
        for name, x in seen:
            assert x.ndim == 2
            assert x.shape[1] == block.sites[name].features
            assert x.dtype == namespace(x).float32

    def test_listening_changes_nothing(self, block: Block, batch: Batch) -> None:
        assert np.array_equal(forward(block, batch, lambda name, x: None), forward(block, batch))
        same = forward(block, batch, lambda name, x: namespace(x).asarray(x, copy=True))
        assert np.array_equal(same, forward(block, batch))

    def test_what_a_listener_answers_takes_the_place(self, block: Block, batch: Batch) -> None:
        before = forward(block, batch)
        for site in block.sites:
            halved = forward(block, batch, lambda name, x, site=site: x * 0.5 if name == site else None)
            assert not np.array_equal(before, halved), site

    def test_a_weight_that_is_set_is_computed_with(self, block: Block, batch: Batch) -> None:
        before = forward(block, batch)
        for layer in block.layers.values():
            kept = layer.weight()
            layer.set_weight(kept * 0.5)
            assert np.array_equal(numpy(layer.weight()), numpy(kept * 0.5))
            assert not np.array_equal(before, forward(block, batch)), layer.name
            layer.set_weight(kept)
        assert np.array_equal(forward(block, batch), before)

    def test_a_layer_multiplies_by_the_transpose_of_its_weight(self, block: Block, batch: Batch) -> None:
        """``(x Q) (W Q)ᵀ = x Wᵀ`` for an orthogonal Q: true only of a weight that is ``(out, in)``, all of it."""
        before = forward(block, batch)
        for site in filter(lambda site: site.layers, block.sites.values()):
            kept = {name: block.layers[name].weight() for name in site.layers}
            rotation = random_rotation(site.features, next(iter(kept.values())))

            def rotate(name: str, x: Array, site: Any = site, rotation: Array = rotation) -> Array | None:
                return x @ rotation if name == site.name else None

            for name, weight in kept.items():
                block.layers[name].set_weight(weight @ rotation)
            error = channel_error(before, forward(block, batch, rotate))
            for name, weight in kept.items():
                block.layers[name].set_weight(weight)
                without = channel_error(before, forward(block, batch, rotate))
                assert error < 0.05 * without, f"{name}: not what its output depends on"
                block.layers[name].set_weight(weight @ rotation)
            for name, weight in kept.items():
                block.layers[name].set_weight(weight)

    def test_given_weights_take_the_place_of_the_layers_own(self, block: Block, batch: Batch) -> None:
        before, random = forward(block, batch), np.random.default_rng(0)
        assert np.array_equal(numpy(block.run(*batch, weights={})["hidden"]), before)
        changed = {}
        for name, layer in block.layers.items():
            weight = layer.weight()
            factors = random.uniform(0.5, 1.5, weight.shape).astype(np.float32)
            changed[name] = weight * namespace(weight).asarray(factors, device=device(weight))
        given = numpy(block.run(*batch, weights=changed)["hidden"])
        assert np.array_equal(forward(block, batch), before), "for one run"
        for name, weight in changed.items():
            block.layers[name].set_weight(weight)
        assert channel_error(forward(block, batch), given) < self.tolerance

    def test_autograd_follows_a_run_with_given_weights(self, model: Model, block: Block, batch: Batch) -> None:
        if not model.differentiates:
            pytest.skip("its blocks cannot be differentiated")
        weights = {name: layer.weight().requires_grad_() for name, layer in block.layers.items()}
        factors = {name: namespace(next(iter(weights.values()))).ones(()).requires_grad_() for name in block.sites}
        block.run(*batch, lambda name, x: x * factors[name], weights)["hidden"].square().sum().backward()
        assert all(weight.grad is not None and bool((weight.grad != 0).any()) for weight in weights.values())
        assert all(factor.grad is not None and bool(factor.grad != 0) for factor in factors.values())
        assert not block.run(*batch)["hidden"].requires_grad

    def test_backward_is_what_autograd_finds(self, model: Model, block: Block, batch: Batch) -> None:
        """The gradient at a layer's output times what arrived is that of its weight; at what the block was given it
        says what a small step does."""
        if not model.differentiates:
            pytest.skip("its blocks cannot be differentiated")
        weights = {name: layer.weight().requires_grad_() for name, layer in block.layers.items()}
        hidden = block.run(*batch, weights=weights)["hidden"]
        at_output = np.random.default_rng(0).standard_normal(hidden.shape).astype(np.float32)
        hidden.backward(namespace(hidden).asarray(at_output, device=device(hidden)))
        found: dict[str, list[np.ndarray]] = {}
        gradient = {"hidden": to_raw(at_output)}
        before = block.backward(*batch, gradient, lambda name, g: found.setdefault(name, []).append(numpy(g)))
        inputs = self.inputs(block, batch)
        for name, parts in found.items():
            wanted, (part,) = numpy(weights[name].grad), parts
            assert part.dtype == np.float32
            error = np.linalg.norm(part.T @ inputs[block.layers[name].site] - wanted)
            assert error <= 10 * self.tolerance * np.linalg.norm(wanted), name
        assert found
        tokens, previous = batch
        assert bool(before) == (previous is not None), "nothing comes before the first block"
        if previous is not None:
            start = from_raw(previous["hidden"])
            step = (2e-4 * start.std() * np.random.default_rng(1).standard_normal(start.shape)).astype(np.float32)
            ends = [forward(block, (tokens, {**previous, "hidden": to_raw(start + sign * step)})) for sign in (-1, 1)]
            moved = float(((ends[1] - ends[0]).astype(np.float64) * at_output).sum() / 2)
            assert float((numpy(before["hidden"]) * step).sum()) == pytest.approx(moved, rel=0.1)

    def test_the_gradient_of_the_loss_is_that_of_drawn_tokens(self, model: Model, tokens: np.ndarray) -> None:
        """So the model itself, on average, has nothing to gain."""
        if not model.differentiates:
            pytest.skip("its blocks cannot be differentiated")
        last = self.last(model, tokens)
        each = [numpy(model.loss_gradient(tokens, last, seed)["hidden"]) for seed in [*range(16), 0]]
        assert np.array_equal(each[0], each[-1]), "same seed, same tokens"
        assert not np.array_equal(each[0], each[1])
        assert each[0].shape == from_raw(last["hidden"]).shape
        assert (each[0][:, -1] != 0).any(), "the last token has a next one, too"
        assert np.linalg.norm(np.mean(each[:16], axis=0)) < 0.5 * np.linalg.norm(each[0])

    def test_losses_are_those_of_the_next_token(self, model: Model, tokens: np.ndarray) -> None:
        losses = self.losses(model, tokens)
        assert losses.dtype == np.float64
        assert losses.shape == (tokens.shape[0], tokens.shape[1] - 1)
        assert (losses > 0).all()
        other = tokens.copy()
        other[:, -1] = (other[:, -1] + 1) % model.vocabulary()
        changed = ~np.isclose(self.losses(model, other), losses, rtol=self.tolerance)
        assert changed[:, -1].all(), "the last loss is that of the last token"
        assert not changed[:, :-1].any(), "a token says nothing about the ones before it"

    def losses(self, model: Model, tokens: np.ndarray) -> np.ndarray:
        return model.losses(tokens, self.last(model, tokens))

    def last(self, model: Model, tokens: np.ndarray) -> Mapping[str, RawTensor]:
        """What the last block returns."""
        batch: Batch = (tokens, None)
        for index in range(len(model.blocks)):
            batch = after(model.block(index, batch), batch)
        assert batch[1] is not None
        return batch[1]

    # --- transforms ------------------------------------------------------------------------------------------

    def test_folds_keep_the_function(self, block: Block, batch: Batch) -> None:
        before, inputs = forward(block, batch), self.inputs(block, batch)
        for fold in block.folds():
            transform = random_scale(fold, block)
            applied, undo = block.apply(transform)
            assert isinstance(applied, ChannelScale)
            assert np.allclose(numpy(applied.scale), numpy(transform.scale), rtol=2**-7), "but for a norm's rounding"
            assert channel_error(before, forward(block, batch)) <= PROOF_TOLERANCE, fold.producer
            scale = numpy(fold.expand(applied.scale))
            shift = 0 if applied.shift is None else numpy(fold.expand(applied.shift))
            for name, x in self.inputs(block, batch).items():
                wanted = (inputs[name] - shift) / scale if name in fold.sites else inputs[name]
                assert channel_error(wanted, x) <= PROOF_TOLERANCE, f"{fold.producer} at {name}"
            undo()

    def test_maps_keep_the_function(self, block: Block, batch: Batch) -> None:
        """Where channels may be mixed, and at every site that takes a map to be computed at run time."""
        before, inputs = forward(block, batch), self.inputs(block, batch)
        for transform in random_maps(block):
            undo = tried(block, transform)
            if undo is None:
                continue
            assert channel_error(before, forward(block, batch)) <= PROOF_TOLERANCE, transform.where
            for name, x in self.inputs(block, batch).items():
                wanted = transform.map.apply(inputs[name]) if name in transform.sites else inputs[name]
                assert channel_error(wanted, x) <= PROOF_TOLERANCE, f"{transform.where} at {name}"
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
                    assert channel_error(wanted, found[name]) <= PROOF_TOLERANCE, name
                undo()

    def test_nothing_folds_behind_a_map(self, block: Block) -> None:
        sites = {site for fold in block.folds() for site in fold.sites}
        for transform in random_maps(block):
            if isinstance(transform, SiteTransform) and transform.site in sites and tried(block, transform):
                fold = next(fold for fold in block.folds() if transform.site in fold.sites)
                with pytest.raises(ValueError, match="run time"):
                    block.apply(random_scale(fold, block))

    def inputs(self, block: Block, batch: Batch) -> dict[str, np.ndarray]:
        """The activation at each site but those of caches, which may lie between a fold's producer and its sites."""
        seen: dict[str, np.ndarray] = {}
        block.run(*batch, lambda name, x: seen.update({name: numpy(x).copy()}))
        return {name: x for name, x in seen.items() if block.sites[name].layers}

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
            assert channel_error(rotation.apply(output), got) <= PROOF_TOLERANCE
            batch = after(rotated.block(index, batch), batch)
        assert np.allclose(self.losses(rotated, tokens), wanted, rtol=self.tolerance, atol=self.tolerance)

    # --- writing ---------------------------------------------------------------------------------------------

    def everything(self, model: Model, tokens: np.ndarray, quantized: bool) -> Iterator[tuple[str, Tensor]]:
        """What is written besides packed layers, when all layers of the model are quantized or none is."""
        batch: Batch = (tokens, None)
        for index in range(len(model.blocks)):
            block = model.block(index, batch)
            batch = after(block, batch)
            yield from block.rest(set(block.layers) if quantized else ())
        yield from model.rest()

    def test_every_tensor_is_written_once(self, model: Model, tokens: np.ndarray) -> None:
        names = [name for name, _ in self.everything(model, tokens, quantized=False)]
        assert len(set(names)) == len(names)
        left = [name for name, _ in self.everything(model, tokens, quantized=True)]
        assert sorted(set(names) - set(left)) == sorted(f"{info.name}.weight" for info in model.layers)
        assert len(set(left)) == len(left)

    def test_opened_twice_it_is_the_same_model(self, case: Case) -> None:
        source, adapter, _ = case
        one, other = adapter.open(source, self.device), adapter.open(source, self.device)
        assert one.layers == other.layers
        assert one.config() == other.config()
        assert one.fingerprint() == other.fingerprint()


def random_rotation(size: int, like: Array) -> Array:
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0].astype(np.float32)
    return namespace(like).asarray(rotation, device=device(like))


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
    rotation = np.linalg.qr(random.standard_normal((max(model.hidden, 1),) * 2))[0].astype(np.float32)
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


def contents(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    raw = tensor.read() if isinstance(tensor, StoredTensor | DerivedTensor) else tensor
    return raw.dtype, raw.shape, raw.data.tobytes()
