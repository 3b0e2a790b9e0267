"""What crosses a hook: layers and sites, transforms, models, and what plugins are."""

from gs_core.interfaces.algorithm import Accumulator, Algorithm, Allocator, Choice, Data, Needs
from gs_core.interfaces.format import CheckpointFormat, Engine, Finished, Output
from gs_core.interfaces.kernel import Kernel, Request
from gs_core.interfaces.layers import (
    CacheInfo,
    CacheNumbers,
    Layer,
    LayerInfo,
    LayerNumbers,
    Site,
    SiteKind,
    StaticInput,
)
from gs_core.interfaces.model import Adapter, Batch, Block, Model
from gs_core.interfaces.transforms import (
    ChannelScale,
    Fold,
    FoldTransform,
    OnSite,
    SiteTransform,
    Transform,
    through,
)

__all__ = [
    "Accumulator",
    "Adapter",
    "Algorithm",
    "Allocator",
    "Batch",
    "Block",
    "CacheInfo",
    "CacheNumbers",
    "ChannelScale",
    "CheckpointFormat",
    "Choice",
    "Data",
    "Engine",
    "Finished",
    "Fold",
    "FoldTransform",
    "Kernel",
    "Layer",
    "LayerInfo",
    "LayerNumbers",
    "Model",
    "Needs",
    "OnSite",
    "Output",
    "Request",
    "Site",
    "SiteKind",
    "SiteTransform",
    "StaticInput",
    "Transform",
    "through",
]
