"""Finding plugins through entry points: listed without importing, loaded by name, one at a time."""

import inspect
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gs_core.errors import PluginError, reason
from gs_schemas import did_you_mean

GROUPS = {
    "algorithm": "golden_stick.algorithms",
    "format": "golden_stick.formats",
    "kernel": "golden_stick.kernels",
    "adapter": "golden_stick.adapters",
}


@dataclass(frozen=True)
class Plugin:
    """One entry point, unread. ``rivals`` are the other distributions that claim the same name."""

    kind: str
    name: str
    entry_point: EntryPoint
    rivals: tuple[EntryPoint, ...] = ()

    @property
    def distribution(self) -> str:
        return self.entry_point.dist.name if self.entry_point.dist else "unknown"

    @property
    def version(self) -> str:
        return self.entry_point.dist.version if self.entry_point.dist else "?"

    @property
    def origin(self) -> str:
        """``name (distribution version)``, as errors cite it."""
        return f"'{self.name}' ({_cite(self.entry_point)})"


def _cite(entry_point: EntryPoint) -> str:
    dist = entry_point.dist
    return f"{dist.name} {dist.version}" if dist else entry_point.value


def installed(kind: str) -> dict[str, Plugin]:
    """Every plugin of a kind by name, from metadata alone."""
    claims: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points(group=GROUPS[kind]):
        others = claims.setdefault(entry_point.name, [])
        # The same distribution can be seen twice on sys.path (an editable install and its copy).
        if all((_cite(o), o.value) != (_cite(entry_point), entry_point.value) for o in others):
            others.append(entry_point)
    return {
        name: Plugin(kind, name, found[0], tuple(found[1:]))
        for name, found in sorted(claims.items(), key=lambda item: item[0])
    }


def find(kind: str, name: str) -> Plugin:
    """The plugin of that name. Raises ``PluginError`` when there is none, or more than one."""
    known = installed(kind)
    if name not in known:
        names = ", ".join(known) or "none"
        raise PluginError(f"no {kind} named '{name}'; installed: {names}.{did_you_mean(name, known)}")
    plugin = known[name]
    if plugin.rivals:
        claims = " and ".join(sorted({_cite(e) for e in (plugin.entry_point, *plugin.rivals)}))
        raise PluginError(f"{kind} '{name}' is claimed by {claims}; uninstall one of them")
    return plugin


def load(kind: str, name: str) -> Any:
    """Import one plugin and return its class. Raises ``PluginError`` naming the distribution at fault."""
    plugin = find(kind, name)
    try:
        loaded = plugin.entry_point.load()
    except Exception as error:  # a stranger's module may raise anything
        raise PluginError(f"{kind} {plugin.origin} cannot be imported: {reason(error)}") from error
    if not inspect.isclass(loaded):
        raise PluginError(f"{kind} {plugin.origin} must be a class, {plugin.entry_point.value} is {loaded!r:.80}")
    return loaded


def status(plugin: Plugin) -> str:
    """``ok``, ``conflict: …`` or ``broken: …``. Imports the plugin to know."""
    from gs_core.stages import check_hooks

    try:
        loaded = load(plugin.kind, plugin.name)
        if plugin.kind in ("algorithm", "format"):
            check_hooks(loaded, plugin)
    except PluginError as error:
        return f"{'conflict' if plugin.rivals else 'broken'}: {error}"
    return "ok"
