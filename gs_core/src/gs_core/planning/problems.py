"""Every problem of a plan, collected, and told at once."""

from typing import Any

from gs_core.errors import GoldenStickError, PlanError


class Problems:
    """Collects problems; layers with the same one share a line."""

    def __init__(self) -> None:
        self._layers: dict[str, list[str]] = {}

    def add(self, problem: str, layer: str | None = None) -> None:
        self._layers.setdefault(problem, []).extend([layer] if layer else [])

    def catch(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except PlanError as error:
            for problem in error.problems:
                self.add(problem)
        except GoldenStickError as error:
            self.add(str(error))
        return None

    def raise_if_any(self) -> None:
        if self._layers:
            raise PlanError([_with_layers(problem, layers) for problem, layers in self._layers.items()])


def _with_layers(problem: str, layers: list[str]) -> str:
    if not layers:
        return problem
    shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    return f"{shown}: {problem}"
