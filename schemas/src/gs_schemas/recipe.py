"""Recipes: what the user asks for."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator

from gs_schemas.errors import SchemaError, unknown, validate
from gs_schemas.loading import load_yaml
from gs_schemas.scheme import QuantizationScheme, Strict

MAX_MATCH_SECONDS = 1.0
"""Time limit for one regular expression on one name. Ordinary expressions take microseconds."""
MAX_PATTERN_CHARACTERS = 10_000


def matches(pattern: str, name: str) -> bool:
    """True if a full layer name fits a pattern: a shell glob, or a regular expression after ``re:``.

    A glob must cover the whole name; a regular expression is anchored at its start (``re.match``). Regular expressions
    have the syntax of Python's ``re``. The ``regex`` package matches them, because it has a time limit.

    Raises ``SchemaError`` for an expression that is invalid, exceeds ``MAX_MATCH_SECONDS`` or has more than
    ``MAX_PATTERN_CHARACTERS``.
    """
    if not pattern.startswith("re:"):
        return fnmatchcase(name, pattern)
    import regex

    try:
        return regex.match(_checked_pattern(pattern)[3:], name, timeout=MAX_MATCH_SECONDS) is not None
    except TimeoutError:
        problem = f"takes more than {MAX_MATCH_SECONDS:g} s on '{name}'; write it without nested repetition"
    except ValueError as error:
        problem = str(error)
    raise SchemaError(f"'{pattern:.200}'", [problem])


def _checked_pattern(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise ValueError(f"a pattern has more than {MAX_PATTERN_CHARACTERS} characters")
    if pattern.startswith("re:"):
        import regex

        try:
            regex.compile(pattern[3:])
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"'{pattern:.200}' is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[
    str, Field(min_length=1), BeforeValidator(lambda p: _checked_pattern(p) if isinstance(p, str) else p)
]


def _scheme_by_name(value: Any) -> Any:
    if isinstance(value, str):
        from gs_schemas.presets import SCHEMES

        if value not in SCHEMES:
            raise ValueError(unknown("scheme", value, SCHEMES, "gsq recipes"))
        return SCHEMES[value]
    return value


SchemeOrName = Annotated[
    QuantizationScheme, BeforeValidator(_scheme_by_name, json_schema_input_type=QuantizationScheme | str)
]


class AlgorithmSpec(Strict):
    """One algorithm: its entry-point name and its options, which the plugin itself validates.

    Also read from ``gptq`` (no options) and ``{gptq: {damping: 0.05}}``.
    """

    name: str
    options: dict[str, Any] = {}


def _algorithm_shorthand(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and "name" not in value and len(value) == 1:
        ((name, options),) = value.items()
        return {"name": name, "options": options or {}}
    return value


AlgorithmShorthand = Annotated[dict[str, dict[str, Any] | None], Field(min_length=1, max_length=1)]
Algorithm = Annotated[
    AlgorithmSpec,
    BeforeValidator(_algorithm_shorthand, json_schema_input_type=AlgorithmSpec | str | AlgorithmShorthand),
]


class Override(Strict):
    """Another scheme (``null``: stay in floating point) for the layers whose full names match, and other algorithms,
    or the same with other options."""

    match: Pattern
    scheme: SchemeOrName | None
    algorithms: list[Algorithm] | None = None


class Calibration(Strict):
    """The tokens that activations are observed on: ``samples`` sequences of ``seq_len`` tokens.

    ``data`` is the path of a text file, a ``.jsonl``, ``.json``, ``.csv`` or ``.npy`` file, a folder, or the hub id of
    a dataset (see docs/calibration.md).

    ``dtype`` is the dtype of matrix products. Everything else is float32. ``model``: the stored dtype of the weights;
    int8 if weights and activations are quantized to int8; float32 if the processor has no fast products in these
    dtypes. ``float32``: all products, also those of searches.
    """

    data: str | None = None
    samples: int = Field(128, gt=0)
    seq_len: int = Field(512, gt=1)
    dtype: Literal["model", "float32"] = "model"

    @property
    def exact(self) -> bool:
        """Whether all products are float32."""
        return self.dtype == "float32"


class Recipe(Strict):
    """An ordered list of algorithms, a scheme, exceptions by layer, calibration, a checkpoint format.

    ``ignore`` keeps layers in floating point and wins over ``overrides``, which are tried in order: the first
    that matches a layer decides. Both match full layer names (see ``matches``).
    """

    name: str | None = None
    scheme: SchemeOrName
    algorithms: list[Algorithm] = Field(min_length=1)
    ignore: list[Pattern] = ["lm_head"]
    overrides: list[Override] = []
    calibration: Calibration = Calibration()
    format: str = "compressed_tensors"

    @field_validator("algorithms")
    @classmethod
    def _once_each(cls, algorithms: list[AlgorithmSpec]) -> list[AlgorithmSpec]:
        names = [a.name for a in algorithms]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' stands in the list twice; give it once, with its options")
        return algorithms

    def instances(self) -> dict[str, AlgorithmSpec]:
        """Every algorithm with every set of options that it is given: the first under its name, then ``gptq#2`` …"""
        found: dict[str, AlgorithmSpec] = {}
        for spec in [*self.algorithms, *(a for o in self.overrides for a in o.algorithms or [])]:
            if spec not in found.values():
                number = 1 + sum(known.name == spec.name for known in found.values())
                found[spec.name if number == 1 else f"{spec.name}#{number}"] = spec
        return found

    def rule_for(self, layer: str) -> tuple[QuantizationScheme | None, list[AlgorithmSpec], str]:
        """Scheme (``None``: float), algorithms and the reason, for a full layer name."""
        for pattern in self.ignore:
            if matches(pattern, layer):
                return None, [], f"ignore '{pattern}'"
        for override in self.overrides:
            if matches(override.match, layer):
                algorithms = self.algorithms if override.algorithms is None else override.algorithms
                return override.scheme, algorithms if override.scheme else [], f"override '{override.match}'"
        return self.scheme, self.algorithms, "recipe"

    @classmethod
    def parse(cls, data: Any, source: str = "recipe") -> Self:
        """Validate a mapping. Raises ``SchemaError`` with one line per problem."""
        if not isinstance(data, dict):
            raise SchemaError(source, [f"expected a mapping of fields, got {type(data).__name__}"])
        return validate(cls, data, source)

    @classmethod
    def from_text(cls, text: str, source: str = "recipe") -> Self:
        """Read YAML or JSON (which is YAML)."""
        return cls.parse(load_yaml(text, source), source)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a ``.yaml``, ``.yml`` or ``.json`` file."""
        return cls.from_text(Path(path).read_text(encoding="utf-8"), str(path))

    def to_json(self) -> str:
        return self.model_dump_json(indent=2)

    def to_yaml(self) -> str:
        """Fields at their defaults are left out; reading it back gives an equal recipe."""
        import yaml

        data = json.loads(self.model_dump_json(exclude_defaults=True))
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
