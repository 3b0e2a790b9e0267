"""Parse YAML and JSON with limits: people share recipes, and a document can be hostile."""

import json
from typing import Any

import yaml

from gs_schemas.errors import SchemaError

MAX_CHARACTERS = 2**20
MAX_NODES = 100_000
"""Mappings, lists and values of one document. An alias counts as all nodes of its anchor."""
MAX_DEPTH = 64
MAX_INTEGER = 2**256


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader. Raises ``ValueError`` for too many nodes, and for a node that contains itself."""

    def __init__(self, text: str):
        super().__init__(text)
        self._nodes = 0
        self._weights: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, repeats = self._nodes, self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if repeats and id(node) not in self._weights:
            raise ValueError("a node contains itself through an alias")
        self._nodes += self._weights[id(node)] if repeats else 1
        if self._nodes > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} nodes, aliases included")
        self._weights.setdefault(id(node), self._nodes - before)
        return node


def load_yaml(text: str, source: str) -> Any:
    """Parse YAML safely: at most ``MAX_CHARACTERS``, ``MAX_NODES`` and ``MAX_DEPTH``, integers below ``MAX_INTEGER``.

    A JSON object is parsed as JSON, because YAML reads ``1e-5`` as a string.

    Raises ``SchemaError``: a syntax error with line and column, or the limit that is exceeded.
    """
    try:
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it has more than {MAX_CHARACTERS} characters")
        value = _parse(text)
        _check(value)
        return value
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
    except RecursionError:
        problem = f"it is nested deeper than {MAX_DEPTH} levels"
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML raises these for a value that does not match its tag, for example `!!int ""`.
        problem = f"it cannot be read: {error}"
    raise SchemaError(source, [problem])


def _parse(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            pass  # YAML has braces too
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _check(document: Any) -> None:
    waiting = [(document, 1)]
    for value, depth in waiting:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple | set):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and abs(value) >= MAX_INTEGER:
            raise ValueError("it has an integer of more than 256 bits")
        elif isinstance(value, str):
            value.encode()  # UnicodeEncodeError, a ValueError, for a lone surrogate
        if len(waiting) > 2 * MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} nodes")
