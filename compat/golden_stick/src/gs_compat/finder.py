"""The import name ``mindspore_gs``: answered here only when nothing else on this machine answers it.

A wheel with a folder ``mindspore_gs`` would overwrite the files of a real one. This one has the folder inside its own
package, and a ``.pth`` file that registers a finder at every start of Python, so it must stay quick to import.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

NAME = "mindspore_gs"
FACADE = os.path.join(os.path.dirname(__file__), "facade")


class Finder:
    """Asks every other finder first: what they find wins, with a warning that two are installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The real package's spec, or ours. Submodules follow the package's own ``__path__``."""
        if name != NAME:
            return None
        for other in sys.meta_path:
            ask = getattr(other, "find_spec", None)
            if other is not self and ask and (found := ask(name, path, target)) is not None:
                _warn(found)
                return found
        return PathFinder.find_spec(name, [FACADE])


def register() -> None:
    """Answer for ``mindspore_gs`` from now on. Once is enough; further calls change nothing."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())  # first only to notice the other: see Finder


def _warn(found: ModuleSpec) -> None:
    import warnings

    where = found.origin or ", ".join(found.submodule_search_locations or ())
    warnings.warn(
        f"{NAME} is imported from {where}; golden-stick-compat, which offers the same name, stands aside. "
        f"To run scripts on Golden Stick's own line, uninstall that one (pip uninstall mindspore-gs)",
        RuntimeWarning,
        stacklevel=2,
    )
