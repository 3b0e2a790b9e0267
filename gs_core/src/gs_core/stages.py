"""The one place that touches pluggy: a manager for each run, and a typed method for each hook."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pluggy

from gs_core import hookspecs
from gs_core.arrays import Array
from gs_core.discovery import Plugin
from gs_core.errors import PluginError
from gs_core.hookspecs import Record
from gs_core.interfaces import Accumulator, Block, Data, Layer, LayerInfo, Output, Site, StaticInput, Transform
from gs_core.linear_map import LinearMap
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationScheme

HOOKS = ("observe", "smooth", "quantize", "pack", "export")
NO_DATA = Data()

Progress = Callable[[str, int, int], None]
"""Told the stage, the index of the block it works on, and how many there are."""


def unrecorded(**facts: Any) -> None:
    """Where there is no report."""


def implements(plugin: Any, hook: str) -> bool:
    """Whether a plugin class or instance marks that method with ``@hookimpl``."""
    return hasattr(getattr(plugin, hook, None), f"{hookspecs.PROJECT}_impl")


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def check_hooks(plugin: Any, found: Plugin | None = None, name: str = "plugin") -> None:
    """Raise ``PluginError`` for a hook that is misspelt or takes arguments that do not exist."""
    who = f"{found.kind} {found.origin}" if found else f"'{name}'"
    manager = _manager()
    try:
        manager.register(plugin, name=name)
    except pluggy.PluginValidationError as error:
        detail = " ".join(str(error).split())
        raise PluginError(f"{who} has a hook with the wrong signature: {detail}") from None
    for hook in vars(manager.hook).values():
        if not hook.has_spec():
            raise PluginError(f"{who} implements '{hook.name}', which is not a hook; hooks are {', '.join(HOOKS)}")


class Stages:
    """The plugins of one run. Hooks answer for one named plugin; wrappers see every call.

    Raises ``PluginError`` when a plugin answers with something its hook may not.
    """

    def __init__(self, plugins: Mapping[str, Any], wrappers: Iterable[Any] = ()):
        self._manager = _manager()
        self.plugins = dict(plugins)
        for name, plugin in plugins.items():
            check_hooks(plugin, name=name)
            self._manager.register(plugin, name=name)
        for wrapper in wrappers:
            check_hooks(wrapper, name=type(wrapper).__name__)
            self._manager.register(wrapper)
        self._callers: dict[tuple[str, str], Any] = {}

    def _call(self, hook: str, name: str, **arguments: Any) -> Any:
        caller = self._callers.get((hook, name))
        if caller is None:
            others = [p for n, p in self.plugins.items() if n != name]
            caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
            self._callers[hook, name] = caller
        return caller(**arguments)

    def _answer(self, hook: str, name: str, ok: bool, answer: Any, expected: str) -> None:
        if not ok:
            raise PluginError(f"'{name}' answered {hook} with {answer!r:.120}; expected {expected}")

    def observe(self, name: str, site: Site, scheme: QuantizationScheme) -> Accumulator | None:
        answer = self._call("observe", name, site=site, scheme=scheme)
        self._answer(
            "observe", name, answer is None or isinstance(answer, Accumulator), answer, "an Accumulator or None"
        )
        return answer

    def smooth(
        self,
        name: str,
        block: Block,
        layers: Sequence[Layer],
        observed: Mapping[str, Any],
        data: Data = NO_DATA,
        record: Record = unrecorded,
        keys: Sequence[Site] = (),
    ) -> list[Transform]:
        given = {"block": block, "layers": layers, "observed": observed, "data": data, "record": record}
        answer = self._call("smooth", name, keys=keys, **given) or ()
        ok = isinstance(answer, Sequence) and all(isinstance(t, Transform) for t in answer)
        self._answer("smooth", name, ok, answer, "a list of transforms")
        return list(answer)

    def quantize(
        self,
        name: str,
        block: Block,
        layers: Sequence[Layer],
        observed: Mapping[str, Any],
        data: Data = NO_DATA,
        record: Record = unrecorded,
    ) -> dict[str, QuantizedTensor]:
        given = {"block": block, "layers": layers, "observed": observed, "data": data, "record": record}
        answer = self._call("quantize", name, **given)
        wanted = {layer.name: layer.shape for layer in layers}
        ok = isinstance(answer, Mapping) and all(
            isinstance(answer.get(n), QuantizedTensor) and answer[n].shape == s for n, s in wanted.items()
        )
        self._answer("quantize", name, ok, answer, f"a QuantizedTensor for each of {', '.join(wanted)}")
        return {layer: answer[layer] for layer in wanted}

    def pack(
        self,
        name: str,
        tensor: QuantizedTensor,
        inputs: StaticInput | None,
        layout: str,
        online: LinearMap | None,
        layer: LayerInfo,
    ) -> dict[str, Array]:
        given = {"tensor": tensor, "inputs": inputs, "layout": layout, "online": online, "layer": layer}
        answer = self._call("pack", name, **given)
        self._answer("pack", name, isinstance(answer, Mapping), answer, "named arrays")
        return dict(answer)

    def export(self, name: str, output: Output) -> list[str]:
        answer = self._call("export", name, output=output)
        listed = isinstance(answer, Sequence) and not isinstance(answer, str)
        ok = listed and all(isinstance(f, str) for f in answer)
        self._answer("export", name, ok, answer, "a list of file names")
        return list(answer)
