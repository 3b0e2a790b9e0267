"""Building the MindFormers network of a checkpoint folder."""

from typing import Any

import mindspore as ms
from mindspore.nn.utils import no_init_parameters

from gs_core import CheckpointError
from gs_core.errors import reason
from gs_mindformers.config import Config
from gs_mindformers.found import Layers
from gs_mindformers.network import Running
from gs_mindformers.structure import examine
from gs_mindformers.topology import observe
from gs_mindformers.weights import Weights

PLAIN = {"use_past": False, "use_flash_attention": False, "use_rope_slice": True, "fused_rms_norm": False}
"""The forms that compute on every device."""
FLOAT32 = dict.fromkeys(("compute_dtype", "param_init_type", "layernorm_compute_type"), "float32")
NO_PADDING = {"pad_token_id": -1}
"""Else every token of that id would be hidden from the others."""


def build(config: Config, weights: Weights, found: Layers, blocks: int) -> Running:
    """A Llama whose own parameters are never filled. Raises ``CheckpointError`` when MindFormers cannot build it, or
    builds other layers than ``found``."""
    network = _network(config.arguments or {}, config.length)
    structure = examine(network)
    running = Running(structure, weights)
    seen = observe(running.runner, structure, running.light(), None)
    watched = [[name for name, _ in group] for group in seen.together if structure.block_of[group[0][0]] is not None]
    expected = [[place.parameter for place in places] for places in found.fed.values()]
    if len(structure.blocks) != blocks or sorted(watched) != sorted(expected):
        raise CheckpointError("MindFormers builds other layers from this configuration than the checkpoint holds")
    return running


def _network(arguments: dict[str, Any], length: int | None) -> ms.nn.Cell:
    try:
        from mindformers.models.llama import LlamaConfig, LlamaForCausalLM

        ms.set_context(pynative_synchronize=True)
        sizes = {"seq_length": length or 2048} | arguments
        with no_init_parameters():
            return LlamaForCausalLM(LlamaConfig(**sizes | PLAIN | FLOAT32 | NO_PADDING))
    except Exception as error:  # MindFormers' own checks of a stranger's file may raise anything
        raise CheckpointError(f"MindFormers cannot build this network: {reason(error)}") from error
