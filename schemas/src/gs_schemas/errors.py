"""Errors that say what was asked, what is allowed, and what was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?``, or nothing when no allowed name is close."""
    folded = {name.casefold().replace("-", "_"): name for name in allowed}
    close = get_close_matches(str(given).casefold().replace("-", "_"), folded, n=1, cutoff=0.6)
    return f" Did you mean '{folded[close[0]]}'?" if close else ""


FEW_NAMES, NEAREST_NAMES = 8, 4
"""A message lists all names if there are at most ``FEW_NAMES``, else at most ``NEAREST_NAMES``."""


def unknown(kind: str, given: str, allowed: Iterable[str], command: str = "") -> str:
    """One sentence for a name that does not exist: ``no scheme named 'x'; there are: …``.

    command: a command that prints all names. With it, a list of more than ``FEW_NAMES`` names is cut to the nearest.
    """
    names = sorted(allowed)
    if command and len(names) > FEW_NAMES:
        folded = {name.casefold().replace("-", "_"): name for name in names}
        close = get_close_matches(str(given).casefold().replace("-", "_"), folded, n=NEAREST_NAMES, cutoff=0.6)
        nearest = f"the nearest: {', '.join(folded[name] for name in close)}; " if close else ""
        return f"no {kind} named '{given}'; {nearest}`{command}` lists all."
    return f"no {kind} named '{given}'; there are: {', '.join(names) or 'none'}.{did_you_mean(given, names)}"


class SchemaError(ValueError):
    """A recipe, scheme or set of options that does not validate. One line per problem in ``problems``."""

    def __init__(self, what: str, problems: list[str]):
        self.what = what
        self.problems = problems
        super().__init__(f"{what}: " + "; ".join(problems))

    @classmethod
    def from_pydantic(cls, what: str, error: ValidationError, model: type[BaseModel]) -> "SchemaError":
        return cls(what, [_sentence(item, model) for item in error.errors(include_url=False)])


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], data: Any, what: str) -> Model:
    """``data`` as an instance of ``model``. Raises ``SchemaError`` with one line per problem."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SchemaError.from_pydantic(what, error, model) from None


def _sentence(item: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    path = where + ": " if where else ""  # what several fields must be together is said of none
    kind = item["type"]
    given = item.get("input")
    if kind == "extra_forbidden":
        fields = _fields_at(model, item["loc"][:-1])
        name = str(item["loc"][-1])
        known = f"; fields: {', '.join(fields)}.{did_you_mean(name, fields)}" if fields else ""
        return f"{path}no such field{known}"
    if kind == "missing":
        return f"{path}is required"
    if kind == "literal_error":
        allowed = item["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{path}got {given!r}, allowed: {', '.join(allowed)}.{did_you_mean(str(given), allowed)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}{message}" if kind == "value_error" else f"{path}got {given!r}. {message}"


def _fields_at(model: type[BaseModel], path: tuple) -> list[str]:
    """The field names of the nested model that ``path`` leads to (empty when it leads to no model)."""
    found: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int) or found is None:
            continue
        field = found.model_fields.get(part)
        found = _model_in(field.annotation) if field else found
    return list(found.model_fields) if found else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(arg) for arg in getattr(annotation, "__args__", ()))
    return next((model for model in inner if model), None)
