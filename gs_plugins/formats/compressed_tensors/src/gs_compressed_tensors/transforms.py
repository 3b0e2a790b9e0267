"""``transform_config``: Sylvester's matrices, which a reader makes for itself, at the inputs of layers, and at the keys
that attention caches together with the queries that meet them there.

Source: ``TransformConfig`` of the compressed-tensors library 0.20, and the R3 and R4 of llm-compressor's SpinQuant.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gs_compressed_tensors.config import spellings, target_matches
from gs_core import CheckpointError, LinearMap

REQUIRING = "quant_method_with_transforms"
"""Replaces ``quant_method`` in the ``quantization_config`` of a checkpoint with transforms at run time.

Without the transforms the weights are meaningless, and transformers 5.23 ignores ``transform_config``. For an unknown
``quant_method`` it prints a warning and loads the codes as float weights. It refuses a ``quantization_config`` without
``quant_method``.
"""
INPUT, KEYS = ("input",), ("q_attn", "k_cache")
Described = Mapping[str, Mapping[str, Any]]
"""``LinearMap.describe()`` by the name of a layer or of an attention module."""


def to_config(inputs: Described, keys: Described, aliases: Mapping[str, str]) -> dict[str, Any] | None:
    """The entry, or ``None`` without any map. Stored weights are meant for transformed inputs already, so nothing is
    listed that would transform a weight."""
    groups = {f"hadamard_{size}": _group(size, spellings(found, aliases), INPUT) for size, found in _by_block(inputs)}
    groups |= {f"keys_{size}": _group(size, spellings(found, aliases), KEYS) for size, found in _by_block(keys)}
    return {"config_groups": groups} if groups else None


def requiring(quantization: Mapping[str, Any], transform_config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``quantization_config`` with ``transform_config``, and with ``REQUIRING`` instead of ``quant_method``."""
    found = {name: value for name, value in quantization.items() if name != "quant_method"}
    return {REQUIRING: quantization["quant_method"], **found, "transform_config": dict(transform_config)}


def method(quantization: Mapping[str, Any]) -> Any:
    """The value of ``quant_method`` or of ``REQUIRING``."""
    return quantization.get("quant_method") or quantization.get(REQUIRING)


def check(quantization: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` if the checkpoint requires transforms and does not have them."""
    groups = (quantization.get("transform_config") or {}).get("config_groups")
    if REQUIRING in quantization and not groups:
        raise CheckpointError(
            f"config.json: quantization_config has '{REQUIRING}' but no transform_config. The weights are for "
            "transformed inputs and are meaningless without it. Restore config.json, or quantize the model again"
        )


def _by_block(described: Described) -> Iterable[tuple[int, list[str]]]:
    found: dict[int, list[str]] = {}
    for name, description in described.items():
        found.setdefault(math.prod(description["sizes"]), []).append(name)
    return found.items()


def _group(size: int, targets: list[str], locations: tuple[str, ...]) -> dict[str, Any]:
    return {
        "type": "hadamard",
        "apply": [{"targets": targets, "location": location, "inverse": False, "ignore": []} for location in locations],
        "randomize": False,
        "requires_grad": False,
        "head_dim": size,
        "precision": "torch.float32",
    }


def input_map(config: Mapping[str, Any], layer: str) -> LinearMap | None:
    """What the layer's input goes through when the model runs. Raises ``CheckpointError`` for what is not read."""
    return _read(config, layer, INPUT)


def key_map(config: Mapping[str, Any], attention: str, head: int) -> LinearMap | None:
    """What each head's keys, of so many channels, go through before they are cached; queries go through the same.
    Raises ``CheckpointError`` for what is not read."""
    found = _read(config, attention, KEYS)
    if found is not None and head % found.block:
        raise CheckpointError(f"{attention}: transform_config mixes {found.block} channels, a head has {head}")
    return found


def _read(config: Mapping[str, Any], name: str, locations: tuple[str, ...]) -> LinearMap | None:
    groups = ((config.get("transform_config") or {}).get("config_groups") or {}).values()
    online = [
        (group, apply.get("location"))
        for group in groups
        for apply in group.get("apply") or ()
        if any(target_matches(target, name) for target in apply.get("targets") or ())
        and not any(target_matches(target, name) for target in apply.get("ignore") or ())
        and not str(apply.get("location")).startswith("weight_")
    ]
    if not online:
        return None
    group, size = online[0][0], online[0][0].get("head_dim")
    whole = sorted(str(where) for _, where in online) == sorted(locations) and all(g is group for g, _ in online)
    readable = whole and group.get("type") == "hadamard" and not group.get("randomize")
    if not readable or not isinstance(size, int) or size < 1 or size & (size - 1):
        raise CheckpointError(f"{name}: cannot read its entry of transform_config: {group!r:.200}")
    return LinearMap(tuple(_sylvester(size)), orthogonal=True)


def _sylvester(order: int) -> list[np.ndarray]:
    """Sylvester's matrix of an order that is a power of two, as factors of at most 64."""
    factors = []
    while order > 1:
        size = min(order, 64)
        matrix = np.ones((1, 1), np.float32)
        while len(matrix) < size:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        factors.append(matrix / np.float32(size**0.5))
        order //= size
    return factors
