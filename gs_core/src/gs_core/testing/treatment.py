"""One block under one algorithm: what the line does to it, without a plan, a journal or a file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gs_core import numerics
from gs_core.arrays import to_raw
from gs_core.interfaces import Batch, Block, Data, Layer, OnSite, Transform
from gs_core.planning import Row
from gs_core.quantized import QuantizedTensor
from gs_core.stages import Stages, implements
from gs_core.testing.plugins import Rounding
from gs_core.testing.suite import forward, numpy
from gs_core.testing.toy_block import ToyBlock
from gs_core.watching import Watch, fake_quantizer
from gs_schemas import QuantizationScheme

TESTED, ROUNDING = "tested", "rounding"


@dataclass
class Treated:
    """A block after its algorithm has answered; its weights are still floating-point ones."""

    block: Block
    scheme: QuantizationScheme
    watch: Watch
    transforms: list[Transform]
    tensors: dict[str, QuantizedTensor]

    def output(self, batch: Batch) -> np.ndarray:
        """What the block computes with the quantized weights and activations. Sets the weights."""
        for name, tensor in self.tensors.items():
            self.block.layers[name].set_weight(numerics.dequantize(tensor))
        static = {name: (self.scheme, site.static_input()) for name, site in self.watch.sites.items()}
        return forward(self.block, batch, fake_quantizer(static))


def treat(algorithm: Any, block: ToyBlock, scheme: QuantizationScheme, batches: Sequence[Batch]) -> Treated:
    """Observe, smooth and quantize. An algorithm that does not quantize is followed by plain rounding."""
    names = (TESTED,) if implements(algorithm, "quantize") else (TESTED, ROUNDING)
    stages = Stages({TESTED: algorithm, ROUNDING: Rounding()})
    layers = list(block.layers.values())
    for layer in layers:
        layer.scheme = scheme
    rows = {layer.name: Row(layer.info, scheme, names, kernel="", reason="") for layer in layers}
    watch = Watch(stages, block, rows, batches, batches)
    targets = [{name: to_raw(numpy(array)) for name, array in block.run(*batch).items()} for batch in batches]
    watch.run()
    sizes, gradients = [len(tokens) for tokens, _ in batches], []
    if algorithm.needs(scheme).loss:
        for batch, target in zip(batches, targets, strict=True):
            at_end = block.model.loss_gradient(batch[0], target, 0)
            gradients.append((batch, {name: to_raw(numpy(array)) for name, array in at_end.items()}))

    def data() -> Data:
        return Data(batches, batches, targets, sizes, gradients, as_seen=watch.as_seen())

    transforms = []
    if implements(algorithm, "smooth"):
        keys = [site for site in block.sites.values() if site.kind == "key" and algorithm.maps_keys]
        with _unwritten(layers):
            found = stages.smooth(TESTED, block, layers, watch.observed(TESTED), data(), keys=keys)
        for transform in found:
            try:
                applied, _ = block.apply(transform)
            except ValueError:  # the producer cannot take it: the line drops it, with a note
                continue
            watch.account(applied)
            transforms.append(applied)
    with _unwritten(layers):
        tensors = stages.quantize(names[-1], block, layers, watch.observed(names[-1]), data())
    return Treated(block, scheme, watch, transforms, tensors)


@contextmanager
def _unwritten(layers: Sequence[Layer]) -> Iterator[None]:
    """Weights that an algorithm may read are not written into."""
    before = [numpy(layer.weight()) for layer in layers]
    yield
    assert all(np.array_equal(numpy(layer.view()), kept) for layer, kept in zip(layers, before, strict=True))


def rounded(tensor: QuantizedTensor) -> np.ndarray:
    """The weight that a tensor stands for."""
    return numpy(numerics.dequantize(tensor))


def deaf(on_site: OnSite | None, site: str) -> OnSite | None:
    """A listener that no token of one site reaches."""
    if on_site is None:
        return None
    return lambda name, x: None if name == site else on_site(name, x)


def run_deaf(
    run: Any, site: str, tokens: Any, previous: Any, on_site: OnSite | None = None, weights: Any = None
) -> Any:
    """A block's ``run`` where no token reaches that site's listeners."""
    return run(tokens, previous, deaf(on_site, site), weights)
