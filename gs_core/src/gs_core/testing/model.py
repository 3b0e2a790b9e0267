"""What every model that an adapter opened owes the line."""

import numpy as np

from gs_core.arrays import FLOAT_DTYPES, namespace
from gs_core.interfaces import Batch, Block, Model
from gs_core.testing.opened import Case
from gs_core.testing.running import GradientSuite, RunningSuite
from gs_core.testing.suite import after, numpy, sentence
from gs_core.testing.transforms import TransformsSuite


class LiveModelSuite(RunningSuite, GradientSuite, TransformsSuite):
    """All tests of a model: what it is made of, what it computes, what it can take, what is written of it. See
    ``OpenedSuite`` for what to give."""

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
