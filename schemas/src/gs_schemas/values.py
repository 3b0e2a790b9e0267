"""Changing single values of a recipe by dotted path: ``scheme.weights.group_size=64``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gs_schemas.errors import SchemaError, unknown
from gs_schemas.loading import load_yaml
from gs_schemas.presets import SCHEMES
from gs_schemas.recipe import Recipe
from gs_schemas.scheme import QuantizationScheme


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """``path=value`` strings as ``{path: value}``, each value read as YAML. Raises ``SchemaError``."""
    values = {}
    for setting in settings:
        path, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not path:
            raise SchemaError(f"'{setting}'", ["expected path=value, such as scheme.weights.group_size=64"])
        try:
            values[path] = load_yaml(text, path)
        except SchemaError:
            hint = "a pattern needs quotes, as in ignore=['*.o_proj']"
            raise SchemaError(path, [f"'{text}' is not YAML; {hint}"]) from None
    return values


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values at some dotted paths, validated as a whole.

    A path names fields (``calibration.samples``), positions in lists (``overrides.0.match``) and, after
    ``algorithms``, an algorithm of the recipe and its option (``algorithms.gptq.damping``).

    The name of a changed recipe contains the changes (``w4a16-gptq with calibration.samples=64``). A scheme with
    changed numbers loses the name of its preset. A preset scheme also loses its name if ``values`` contains its group
    size, even an equal one, so that planning does not replace this size.

    Raises ``SchemaError`` for an unknown path or a value that is not allowed, with the nearest name.
    """
    data = recipe.model_dump(mode="json")
    for path, value in values.items():
        first, *rest = path.split(".")
        if first == "algorithms" and rest:
            _put_option(data, rest[0], rest[1:], value)
        else:
            data = _put(data, [first, *rest], value)
            if rest[-2:] == ["weights", "group_size"]:
                data = _put(data, [first, *rest[:-2]], _nameless(_at(data, [first, *rest[:-2]])))
    return _with_changes_in_name(recipe, Recipe.parse(data), values)


def _put_option(data: Mapping[str, Any], name: str, path: Sequence[str], value: Any) -> None:
    """In every list that names the algorithm: a recipe has one set of options for it."""
    lists = [data["algorithms"], *(override["algorithms"] or [] for override in data["overrides"])]
    specs = [spec for algorithms in lists for spec in algorithms]
    if name not in (spec["name"] for spec in specs):
        raise SchemaError("recipe", [unknown("algorithm of this recipe", name, {spec["name"] for spec in specs})])
    for spec in specs:
        if spec["name"] == name:
            spec["options"] = _put(spec["options"], path, value, f"algorithms.{name}")


def _put(node: Any, path: Sequence[str], value: Any, at: str = "") -> Any:
    """A copy of plain data with the value at the path. Unknown fields are left to the validation that follows."""
    if not path:
        return value
    part, rest, here = path[0], path[1:], f"{at}.{path[0]}".lstrip(".")
    if isinstance(node, str) and at.endswith("scheme") and node in SCHEMES:
        node = SCHEMES[node].model_dump(mode="json")
    if node is None or isinstance(node, dict):
        fields = node or {}
        return {**fields, part: _put(fields.get(part), rest, value, here)}
    if not isinstance(node, list):
        raise SchemaError("recipe", [f"{here}: {at} is {node!r}, nothing is below it"])
    if not (part.isdecimal() and int(part) < len(node)):
        raise SchemaError("recipe", [f"{here}: {at} is a list of {len(node)}; '{part}' is no position in it, from 0"])
    index = int(part)
    return [*node[:index], _put(node[index], rest, value, here), *node[index + 1 :]]


def _at(node: Any, path: Sequence[str]) -> Any:
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def _nameless(scheme: Any) -> Any:
    """The scheme without its name if that is the name of a preset."""
    return {**scheme, "name": None} if scheme.get("name") in SCHEMES else scheme


def _with_changes_in_name(before: Recipe, after: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values in its name. Schemes with changed numbers lose their names."""
    overrides = [
        now.model_copy(update={"scheme": _with_true_name(was.scheme, now.scheme)})
        for was, now in zip(before.overrides, after.overrides, strict=False)
    ]
    after = after.model_copy(
        update={
            "scheme": _with_true_name(before.scheme, after.scheme),
            "overrides": [*overrides, *after.overrides[len(overrides) :]],
        }
    )
    if after == before or before.name is None or before.name != after.name:
        return after
    changes = ", ".join(
        f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in values.items()
    )
    return after.model_copy(update={"name": f"{before.name}{',' if ' with ' in before.name else ' with'} {changes}"})


def _with_true_name(before: QuantizationScheme | None, after: QuantizationScheme | None) -> QuantizationScheme | None:
    if after is None or after.name is None:
        return after
    meant = SCHEMES.get(after.name) or (before if before and before.name == after.name else after)
    return after if after == meant else after.model_copy(update={"name": None})
