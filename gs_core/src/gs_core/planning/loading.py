"""The plugins that a recipe names, loaded and configured."""

from collections.abc import Iterable, Mapping
from typing import Any

from gs_core import discovery
from gs_core.errors import PlanError, PluginError
from gs_core.interfaces import Algorithm, CheckpointFormat
from gs_core.stages import check_hooks
from gs_schemas import AlgorithmSpec, SchemaError, validate


def load_algorithm(name: str, options: Mapping[str, Any]) -> Algorithm:
    """Load and configure one algorithm. Raises ``PluginError`` or ``PlanError``."""
    plugin = discovery.load("algorithm", name)
    found = discovery.find("algorithm", name)
    if not issubclass(plugin, Algorithm):
        raise PluginError(f"algorithm {found.origin} must derive from gs_core.Algorithm")
    try:
        validated = validate(plugin.Options, dict(options), name)
    except SchemaError as error:
        raise PlanError([f"algorithm '{name}': {problem}" for problem in error.problems]) from None
    instance = plugin(validated)
    check_hooks(instance, found)
    return instance


def load_format(name: str) -> CheckpointFormat:
    """Load one checkpoint format. Raises ``PluginError``."""
    plugin = discovery.load("format", name)
    found = discovery.find("format", name)
    if not issubclass(plugin, CheckpointFormat):
        raise PluginError(f"format {found.origin} must derive from gs_core.CheckpointFormat")
    instance = plugin()
    check_hooks(instance, found)
    return instance


def names_of(specs: Iterable[AlgorithmSpec], instances: Mapping[str, AlgorithmSpec]) -> list[str]:
    """What ``Recipe.instances()`` calls these algorithms, with these options."""
    return [next(name for name, known in instances.items() if known == spec) for spec in specs]
