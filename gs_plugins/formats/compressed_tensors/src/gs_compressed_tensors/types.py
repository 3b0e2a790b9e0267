"""Checks the JSON types of entries of ``quantization_config``."""

from collections.abc import Mapping
from typing import Any

from gs_core import CheckpointError

_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a number", bool: "true or false"}
_TOP = {"config_groups": (dict,), "ignore": (list,), "kv_cache_scheme": (dict,), "transform_config": (dict,)}
_GROUP = {"targets": (list,), "weights": (dict,), "input_activations": (dict,)}
_ARGS = {
    "num_bits": (int,),
    "type": (str,),
    "strategy": (str,),
    "group_size": (int,),
    "symmetric": (bool,),
    "dynamic": (bool, str),
}


def check_types(quantization: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError``, naming the entry, for a value of a wrong JSON type. ``null`` is a missing entry."""
    where = "quantization_config"
    _check(quantization, _TOP, where)
    _check_strings(quantization.get("ignore"), f"{where}.ignore")
    _check(quantization.get("kv_cache_scheme") or {}, _ARGS, f"{where}.kv_cache_scheme")
    for name, group in (quantization.get("config_groups") or {}).items():
        at = f"{where}.config_groups.{name}"
        _check_one(group, (dict,), at)
        _check(group, _GROUP, at)
        _check_strings(group.get("targets"), f"{at}.targets")
        for part in ("weights", "input_activations"):
            _check(group.get(part) or {}, _ARGS, f"{at}.{part}")


def _check(given: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], where: str) -> None:
    for key, wanted in kinds.items():
        if given.get(key) is not None:
            _check_one(given[key], wanted, f"{where}.{key}")


def _check_strings(given: Any, where: str) -> None:
    for number, value in enumerate(given or ()):
        _check_one(value, (str,), f"{where}.{number}")


def _check_one(value: Any, kinds: tuple[type, ...], where: str) -> None:
    if type(value) not in kinds:  # not isinstance: a bool is an int
        wanted = " or ".join(_NAMES[kind] for kind in kinds)
        raise CheckpointError(f"{where} is {str(value)[:60]!r}, not {wanted}; correct config.json")
