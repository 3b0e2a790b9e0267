"""A configuration is compared with the checkpoint's headers before anything is built from it."""

from collections.abc import Iterator, Mapping
from typing import Any

from gs_core import CheckpointError
from gs_core.storage import Checkpoint

MIN_LAYERS, MIN_SIZE = 1024, 2**20
"""Counts of layers and sizes that are never refused."""
SIZES = ("size", "dim", "rank", "head", "heads", "experts", "embd", "inner", "hidden")


def check_backed(config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` if the configuration describes a model that the tensors cannot fill.

    A count of layers is at most the number of tensors; a size is at most the largest extent of a tensor.
    """
    layers = max(MIN_LAYERS, len(checkpoint.tensors))
    extent = max((n for tensor in checkpoint.tensors.values() for n in tensor.shape), default=0)
    for name, value in _integers(config):
        words = name.lower().split("_")
        limit = layers if {"layer", "layers"} & {*words} else max(MIN_SIZE, extent) if words[-1] in SIZES else None
        if limit is not None and abs(value) > limit:
            shown = f"{value}" if abs(value) < 2**63 else "more than 64 bits"
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'}: {name} is {shown}, but the checkpoint has "
                f"{len(checkpoint.tensors)} tensors, none larger than {extent} in any dimension. "
                "config.json is damaged or belongs to another model"
            )


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every integer of a configuration and of those inside it, with its key."""
    for name, value in config.items():
        if type(value) is int:
            yield name, value
        elif isinstance(value, dict):
            yield from _integers(value)
