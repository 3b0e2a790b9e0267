"""Sizes in ``config.json`` are compared with the checkpoint before a model is built."""

from collections.abc import Iterator, Mapping
from typing import Any

from gs_core import CheckpointError
from gs_core.storage import Checkpoint

ALLOWED_LAYERS, ALLOWED_SIZE = 1024, 2**20
"""A configuration with at most these counts of layers and sizes is never refused."""
SIZE_WORDS = ("size", "dim", "rank", "head", "heads", "experts", "embd", "inner", "hidden")


def check_sizes(config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` if the configuration describes a model that is larger than the checkpoint.

    A count of layers is at most the number of tensors. A size is at most the largest dimension of a tensor.
    """
    layers = max(ALLOWED_LAYERS, len(checkpoint.tensors))
    extent = max((n for tensor in checkpoint.tensors.values() for n in tensor.shape), default=0)
    size = max(ALLOWED_SIZE, extent)
    for name, value in _integers(config):
        words = name.lower().split("_")
        if {"layer", "layers"} & {*words}:
            limit = layers
        elif words[-1] in SIZE_WORDS:
            limit = size
        else:
            continue
        if abs(value) > limit:
            shown = f"{value}" if abs(value) < 2**63 else "more than 64 bits"
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'}: {name} is {shown}, but the checkpoint has "
                f"{len(checkpoint.tensors)} tensors, none larger than {extent} in any dimension. "
                "config.json is damaged or belongs to another model; copy the folder again"
            )


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every integer of a configuration, also of nested ones, with its key."""
    for name, value in config.items():
        if type(value) is int:
            yield name, value
        elif isinstance(value, dict):
            yield from _integers(value)
