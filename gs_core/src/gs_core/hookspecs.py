"""The five hooks of the line. Each is called on the plugin the recipe names, with wrappers around it.

An implementation may leave out arguments it does not need. It must not give any of them a default.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy

from gs_core.arrays import Array
from gs_core.interfaces import Accumulator, Block, Data, Layer, LayerInfo, Output, Site, StaticInput, Transform
from gs_core.linear_map import LinearMap
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationScheme

PROJECT = "golden_stick"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Record = Callable[..., None]
"""``record(loss=[0.9, 0.5])``: plain data by name, which the report holds beside the block's and the plugin's name."""


@hookspec(firstresult=True)
def observe(site: Site, scheme: QuantizationScheme) -> Accumulator | None:
    """Asked for each site before the block runs: what to collect there, or None.

    ``scheme`` is that of the site's layers. A site of a cache is offered to the plugin that treats its kind, with
    its attention module's scheme; the accumulator's result is the site's ``StaticInput``.
    """


@hookspec(firstresult=True)
def smooth(  # type: ignore[empty-body]
    block: Block,
    layers: Sequence[Layer],
    keys: Sequence[Site],
    observed: Mapping[str, Any],
    data: Data,
    record: Record,
) -> Sequence[Transform]:
    """Asked once for each block: transforms that leave the float function as it was.

    ``keys`` are the sites of the block's quantized keys, for a plugin that maps them (``maps_keys``).

    ``observed`` holds the results of this plugin's own accumulators by site name; a site that no token reached
    is missing from it. ``data`` is the block's calibration data, for what learns. ``record`` puts facts about this
    block into the report.
    """


@hookspec(firstresult=True)
def quantize(  # type: ignore[empty-body]
    block: Block, layers: Sequence[Layer], observed: Mapping[str, Any], data: Data, record: Record
) -> Mapping[str, QuantizedTensor]:
    """Asked once for each block: a quantized tensor for every one of ``layers``, by layer name.

    The other arguments are as those of ``smooth``.
    """


@hookspec(firstresult=True)
def pack(  # type: ignore[empty-body]
    tensor: QuantizedTensor, inputs: StaticInput | None, layout: str, online: LinearMap | None, layer: LayerInfo
) -> Mapping[str, Array]:
    """Asked for each quantized tensor: named arrays as the file holds them (``weight_packed``, ``weight_scale``).

    ``inputs`` are the parameters of the layer's statically quantized input, where its scheme has one. ``online`` is
    what the layer's input goes through when the model runs, where that is more than nothing; layers that share an
    input share it. ``layer`` is what was known of this one before.
    """


@hookspec(firstresult=True)
def export(output: Output) -> Sequence[str]:  # type: ignore[empty-body]
    """Asked for each block, once for what lies outside the blocks, and once at the end: names of files written."""
