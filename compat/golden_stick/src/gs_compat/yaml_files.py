"""Configurations as YAML files: dtypes as ``Int8``, enumerations by their names."""

from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Self

from gs_schemas import SchemaError, load_yaml, unknown


class YamlFile:
    """What every configuration can do. ``_readers`` turn a field's text back into its value."""

    _readers: ClassVar[dict[str, Any]] = {}

    def dump(self, file_path: str | Path) -> None:
        """Write a YAML file. The configuration stays as it is."""
        import yaml

        Path(file_path).write_text(yaml.safe_dump(self._plain(), allow_unicode=True), encoding="utf-8")

    def load(self, yaml_file: str | Path) -> Self:
        """Take over the values of a YAML file, validated together; fields it does not name get their defaults.

        Raises ``ValueError`` or ``TypeError`` as the constructor does, and then changes nothing.
        """
        values = load_yaml(Path(yaml_file).read_text(encoding="utf-8"), str(yaml_file))
        if not isinstance(values, dict):
            raise SchemaError(str(yaml_file), [f"expected a mapping of fields, got {type(values).__name__}"])
        known = [f.name for f in fields(self)]  # type: ignore[arg-type]
        problems = [
            unknown(f"field of {type(self).__name__}", str(name), known) for name in values if name not in known
        ]
        if problems:
            raise SchemaError(str(yaml_file), problems)
        read = {name: self._readers.get(name, _as_is)(value) for name, value in values.items()}
        self.__dict__.update(type(self)(**read).__dict__)
        return self

    def _plain(self) -> dict[str, Any]:
        """Values of plain types, sharing nothing with the configuration."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _as_is(value: Any) -> Any:
    return value
