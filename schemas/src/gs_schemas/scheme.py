"""Schemes: which numbers to use for weights, input activations and the KV cache."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gs_schemas.errors import unknown
from gs_schemas.numbers import NUMBER_FORMATS, NumberFormat, ScaleFormat


class Strict(BaseModel):
    """Frozen, and an unknown field is an error: a misspelt option never passes silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _known_format(name: Any) -> Any:
    if isinstance(name, str) and name not in NUMBER_FORMATS:
        raise ValueError(unknown("number format", name, NUMBER_FORMATS))
    return name


FormatName = Annotated[str, BeforeValidator(_known_format), Field(json_schema_extra={"enum": sorted(NUMBER_FORMATS)})]
Granularity = Literal["tensor", "channel", "group", "block", "token", "head"]


class QuantizationArgs(Strict):
    """How one tensor becomes codes: ``x ≈ (code - zero_point) * scale``.

    Parameters
    ----------
    format: the number format of a code, a key of ``NUMBER_FORMATS``.
    granularity: what shares a scale. ``tensor``: everything. ``channel``: a row of the weight (an output
        feature). ``group``: ``group_size`` neighbours along the last axis. ``block``: a ``block_size`` tile.
        ``token``: the last axis of an activation. ``head``: one attention head of a cached key or value (of each
        token, where dynamic).
    symmetric: no zero point. Always true for floating point.
    dynamic: scales are computed at run time (``True``), before it (``False``), or at run time under a global
        scale computed before it (``"local"``, as NVFP4 activations are).
    observer: how a static range is chosen. ``minmax`` keeps every value, ``mse`` minimises the squared error; for
        activations also ``percentile`` (keeps ``percentile`` percent of the values), ``divergence``
        (Kullback-Leibler, of the histogram) and ``average`` (the mean of the batches' extremes).
    scale_format: how a scale is stored.
    global_scale: scales are themselves relative to one float32 scale per tensor (two-level, as in NVFP4).
    zero_point: how a zero point is stored: ``int`` on the grid of the codes, ``float`` in the scale's format.
    after: the args whose *result* these quantize (two-stage; ``None`` for the usual single stage).
    """

    format: FormatName
    granularity: Granularity = "channel"
    group_size: int | None = Field(None, gt=0)
    block_size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    symmetric: bool = True
    dynamic: bool | Literal["local"] = False
    observer: Literal["minmax", "mse", "percentile", "divergence", "average"] = "minmax"
    percentile: float | None = Field(None, gt=50, le=100)
    scale_format: ScaleFormat = "model"
    global_scale: bool = False
    zero_point: Literal["int", "float"] = "int"
    after: "QuantizationArgs | None" = None

    @property
    def number(self) -> NumberFormat:
        return NUMBER_FORMATS[self.format]

    @property
    def bits(self) -> int:
        return self.number.bits

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, granularity in (("group_size", "group"), ("block_size", "block")):
            given = getattr(self, field) is not None
            if given and self.granularity != granularity:
                raise ValueError(f"{field} needs granularity '{granularity}', got '{self.granularity}'")
            if not given and self.granularity == granularity:
                raise ValueError(f"granularity '{granularity}' needs {field}")
        if (self.percentile is not None) != (self.observer == "percentile"):
            raise ValueError("observer 'percentile' and a value for percentile (99.9, say) go together")
        number = self.number
        if not self.symmetric and not number.is_integer:
            raise ValueError(f"symmetric must be true for '{self.format}', which has no zero point")
        if self.symmetric and number.kind == "uint":
            raise ValueError(f"'{self.format}' is unsigned: symmetric must be false, or use 'int{number.bits}'")
        if number.kind == "shared_exponent" and self.group_size != number.block_size:
            raise ValueError(
                f"'{self.format}' shares exponents in blocks: use granularity 'group', group_size {number.block_size}"
            )
        if self.global_scale and self.scale_format in ("model", "float32", "float16", "bfloat16", "e8m0"):
            raise ValueError("global_scale needs a narrow scale_format with a range to share, such as 'fp8_e4m3'")
        return self


class QuantizationScheme(Strict):
    """The numbers of one layer. ``None`` keeps that tensor in floating point.

    ``name`` is the preset's, kept for tables and reports; it does not change what is done.
    """

    name: str | None = None
    weights: QuantizationArgs | None = None
    inputs: QuantizationArgs | None = None
    kv_cache: QuantizationArgs | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.weights and self.weights.dynamic is not False:
            raise ValueError("weights: dynamic must be false, a weight does not change at run time")
        if self.weights and self.weights.observer not in ("minmax", "mse"):
            raise ValueError(f"weights: observer '{self.weights.observer}' is for activations; use minmax or mse")
        if self.weights and self.weights.granularity in ("token", "head"):
            raise ValueError(f"weights: a weight has no '{self.weights.granularity}' granularity")
        if self.inputs and self.inputs.granularity == "token" and self.inputs.dynamic is False:
            raise ValueError("inputs: a scale per token is only known at run time; set dynamic: true")
        if self.inputs and self.inputs.granularity in ("channel", "head"):
            raise ValueError("inputs: use granularity 'tensor', 'token', 'group' or 'block'")
        if self.kv_cache and self.kv_cache.observer not in ("minmax", "mse"):
            raise ValueError(f"kv_cache: observer '{self.kv_cache.observer}' is for activations; use minmax or mse")
        if self.kv_cache and self.kv_cache.granularity == "block":
            raise ValueError("kv_cache: use granularity 'tensor', 'channel', 'head', 'token' or 'group'")
        if self.kv_cache and self.kv_cache.granularity in ("token", "group") and not self.kv_cache.dynamic:
            raise ValueError("kv_cache: a scale for every token is only known at run time; set dynamic: true")
        if self.kv_cache and self.kv_cache.granularity in ("tensor", "channel") and self.kv_cache.dynamic:
            raise ValueError(
                f"kv_cache: a scale per {self.kv_cache.granularity} spans tokens that are still to come; "
                "set dynamic: false, or use granularity 'token', 'head' or 'group'"
            )
        return self

    def describe(self) -> str:
        """The preset's name, or a short rendering: ``int4 group 128 sym``."""
        if self.name:
            return self.name
        parts = [
            f"{label} {_render(args)}"
            for label, args in (("w", self.weights), ("a", self.inputs), ("kv", self.kv_cache))
            if args
        ]
        return ", ".join(parts) or "float"


def _render(args: QuantizationArgs) -> str:
    size = f" {args.group_size or args.block_size}" if args.granularity in ("group", "block") else ""
    return (
        f"{args.format} {args.granularity}{size}{'' if args.symmetric else ' asym'}{' dynamic' if args.dynamic else ''}"
    )
