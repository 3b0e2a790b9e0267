"""What a block computes, what it tells of that, and what autograd makes of it."""

from typing import Any

import numpy as np
import pytest

from gs_core.arrays import Array, device, from_raw, namespace, to_raw
from gs_core.comparing import channel_error
from gs_core.interfaces import Batch, Block, Model
from gs_core.testing.opened import OpenedSuite
from gs_core.testing.suite import forward, numpy


class RunningSuite(OpenedSuite):
    """A block runs, listened to or not, with its own weights or given ones."""

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

    def test_logits_of_some_positions_are_those_of_all(self, model: Model, tokens: np.ndarray) -> None:
        last = self.last(model, tokens)
        logits = model.logits(tokens, last)
        assert logits.dtype == np.float32
        assert logits.shape == (*tokens.shape, model.vocabulary())
        part = slice(1, None), slice(1, 3)
        assert np.allclose(model.logits(tokens, last, *part), logits[part], rtol=self.tolerance, atol=self.tolerance)

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


class GradientSuite(OpenedSuite):
    """Blocks that say so can be differentiated."""

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


def random_rotation(size: int, like: Array) -> Array:
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0].astype(np.float32)
    return namespace(like).asarray(rotation, device=device(like))
