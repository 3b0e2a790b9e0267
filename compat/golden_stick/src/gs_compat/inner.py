"""``InnerPTQConfig``: a ``PTQConfig`` with the switches that scripts set through ``ptq._config``."""

import copy
import warnings
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from gs_compat.checks import typed
from gs_compat.config import PTQConfig
from gs_compat.words import LayerQuantizeAlgo, PTQApproach
from gs_schemas import unknown

_STREAMED = "activations are streamed from block to block; nothing else is kept or loaded again"
_OPERATORS = "each cell chooses its operators by where it runs"
_FROM_NETWORK = "it is taken from where the network runs"
_RANGES = "codes of symmetric tensors use the whole range of the number format"
NO_EFFECT = {
    "act_per_channel": "activations have a scale per tensor or per token",
    "weight_per_channel": "weight_quant_granularity says it",
    "kvcache_per_head": "kvcache_quant_granularity says it",
    "act_narrow_range": _RANGES,
    "weight_narrow_range": _RANGES,
    "kvcache_narrow_range": _RANGES,
    "enable_deploy_fusion": _OPERATORS,
    "kvcache_calibrate_max_new_tokens": "keys and values are observed on the calibration tokens",
    "reflash_inputs_after_each_processor": _STREAMED,
    "always_use_fp_input_in_processer": _STREAMED,
    "skip_offload_in_processing": _STREAMED,
    "algorithm_cache_path": "searches are quick enough to be run again",
    "aclnn_quant_list": _OPERATORS,
    "use_inner_osp": "there is one form of outlier suppression plus",
    "save_gmm_bias_in_quant_phase": "the file format decides what is stored",
    "experimental": "there is one implementation",
    "tp_size": _FROM_NETWORK,
    "rank_id": _FROM_NETWORK,
    "layer_quant_info_collect": "PTQ.summary tells it",
    "dump_path": "use plugins around the stages of gs_core.quantize to look inside",
    "save_model_type": "save_checkpoint's format says it",
    "device_target": _FROM_NETWORK,
    "dev_id": _FROM_NETWORK,
}
"""Switches that Golden Stick has and that change nothing here, and why."""


@dataclass
class InnerPTQConfig(PTQConfig):
    """What ``PTQ`` works with. Setting what has no effect here warns, and says why; setting what does not exist is an
    error.

    ``weight_symmetric``, ``act_symmetric``, ``kvcache_symmetric``: whether codes have no zero point.
    ``fallback_blacklist``: part of a layer's name → how to quantize it instead (``LayerQuantizeAlgo``).
    ``fake_quant``: put the rounded weights into the network in floating point.
    """

    approach: PTQApproach = PTQApproach.PTQ
    act_symmetric: bool = False
    weight_symmetric: bool = True
    kvcache_symmetric: bool = True
    fallback_blacklist: dict[str, Any] = field(default_factory=dict)
    fake_quant: bool = False
    act_per_channel: bool = False
    weight_per_channel: bool = True
    kvcache_per_head: bool = True
    act_narrow_range: bool = False
    weight_narrow_range: bool = False
    kvcache_narrow_range: bool = False
    enable_deploy_fusion: bool = True
    kvcache_calibrate_max_new_tokens: int = 10
    reflash_inputs_after_each_processor: bool = False
    always_use_fp_input_in_processer: bool = False
    skip_offload_in_processing: bool = False
    algorithm_cache_path: dict[str, Any] | str = field(default_factory=dict)
    aclnn_quant_list: list[str] = field(default_factory=list)
    use_inner_osp: bool = False
    save_gmm_bias_in_quant_phase: bool = False
    experimental: bool = False
    tp_size: int = 1
    rank_id: int = 0
    layer_quant_info_collect: dict[str, str] = field(default_factory=dict)
    dump_path: str = ""
    save_model_type: str = "ckpt"
    device_target: str = "ascend"
    dev_id: list[int] = field(default_factory=lambda: [0])

    _readers: ClassVar[dict[str, Any]] = PTQConfig._readers | {"approach": PTQApproach.from_str}

    def __setattr__(self, name: str, value: Any) -> None:
        known = [f.name for f in fields(self)]
        if name not in known:
            raise AttributeError(unknown("switch of InnerPTQConfig", name, known))
        if name in NO_EFFECT and name in self.__dict__ and value != self.__dict__[name]:
            warnings.warn(f"{name} = {value!r} has no effect here: {NO_EFFECT[name]}", stacklevel=2)
        super().__setattr__(name, value)

    def check(self) -> None:
        """As ``PTQConfig.check``, and the switches."""
        super().check()
        for name in ("act_symmetric", "weight_symmetric", "kvcache_symmetric", "fake_quant"):
            typed(name, getattr(self, name), bool)
        typed("fallback_blacklist", self.fallback_blacklist, dict)
        for part, to in self.fallback_blacklist.items():
            typed("fallback_blacklist: a key", part, str)
            if not isinstance(to, LayerQuantizeAlgo):
                LayerQuantizeAlgo.from_str(str(to))
        if self.act_quant_dtype and not self.weight_symmetric:
            raise ValueError("weight_symmetric False is for weights alone: leave act_quant_dtype None")
        both = sorted(set(self.fallback_blacklist) & set(self.opname_blacklist))
        if both:
            raise ValueError(f"'{both[0]}' stands in opname_blacklist and in fallback_blacklist; keep one of them")

    def set_dump_path(self, dump_path: str) -> None:
        """Warns: nothing is dumped."""
        self.dump_path = dump_path

    @classmethod
    def inner_config(cls, cfg: PTQConfig, approach: PTQApproach = PTQApproach.PTQ) -> Self:
        """A configuration's own copy, with the switches at their defaults unless it has them.

        Raises ``TypeError`` for anything but a ``PTQConfig``.
        """
        if not isinstance(cfg, PTQConfig):
            raise TypeError(f"expected a PTQConfig, got {cfg!r} ({type(cfg).__name__})")
        values: dict[str, Any] = {f.name: getattr(cfg, f.name) for f in fields(cfg)}
        return cls(**copy.deepcopy(values | {"approach": approach}))
