"""``PTQConfig``: what to quantize and how. Every rule about what goes together is in this file."""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from gs_compat.algorithms import AlgorithmConfig, AWQConfig, GPTQQuantConfig, SmoothQuantConfig
from gs_compat.checks import one_of, strings, typed
from gs_compat.dtypes import dtype_name, yaml_dtype
from gs_compat.words import BackendTarget, OutliersSuppressionType, PrecisionRecovery, PTQMode, QuantGranularity
from gs_compat.yaml_files import YamlFile
from gs_schemas import unknown

GROUP_SIZES = (64, 128, 256)
_DTYPES = {
    "weight_quant_dtype": ("int8", "qint4x2", None),
    "act_quant_dtype": ("int8", None),
    "kvcache_quant_dtype": ("int8", None),
}
_GRANULARITIES = {
    "weight_quant_granularity": (QuantGranularity.PER_CHANNEL, QuantGranularity.PER_GROUP),
    "act_quant_granularity": (QuantGranularity.PER_TENSOR, QuantGranularity.PER_TOKEN),
    "kvcache_quant_granularity": (QuantGranularity.PER_CHANNEL, QuantGranularity.PER_TOKEN),
}
Options = TypeVar("Options", GPTQQuantConfig, AWQConfig, SmoothQuantConfig)


@dataclass
class PTQConfig(YamlFile):
    """The fields of ``mindspore_gs.ptq.PTQConfig``, in their order.

    Dtypes are given as MindSpore's objects or as strings, and kept as ``"int8"``, ``"qint4x2"`` or ``None``.
    ``algo_args`` is one of the configurations of ``algorithms``, or a mapping of its fields; it is kept as a mapping.

    Raises ``TypeError`` for a value of the wrong type, ``ValueError`` for one that is not allowed, or not beside the
    others.
    """

    mode: PTQMode = PTQMode.QUANTIZE
    backend: BackendTarget = BackendTarget.ASCEND
    opname_blacklist: list[str] = field(default_factory=list)
    algo_args: dict[str, Any] | AlgorithmConfig = field(default_factory=dict)
    weight_quant_dtype: Any = "int8"
    kvcache_quant_dtype: Any = None
    act_quant_dtype: Any = None
    precision_recovery: PrecisionRecovery = PrecisionRecovery.NONE
    outliers_suppression: OutliersSuppressionType = OutliersSuppressionType.NONE
    weight_quant_granularity: QuantGranularity = QuantGranularity.PER_CHANNEL
    kvcache_quant_granularity: QuantGranularity = QuantGranularity.PER_CHANNEL
    act_quant_granularity: QuantGranularity = QuantGranularity.PER_TENSOR
    group_size: int = 0
    weight_clip: bool = False

    _readers: ClassVar[dict[str, Any]] = {
        "mode": PTQMode.from_str,
        "backend": BackendTarget.from_str,
        "precision_recovery": PrecisionRecovery.from_str,
        "outliers_suppression": OutliersSuppressionType.from_str,
        **dict.fromkeys(_GRANULARITIES, QuantGranularity.from_str),
    }

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ``TypeError`` or ``ValueError`` unless every value is allowed beside the others."""
        self._check_values()
        self._check_combinations()
        self._check_algorithms()

    def options(self, kind: type[Options]) -> Options:
        """What ``algo_args`` says to one algorithm, the rest at its defaults."""
        assert isinstance(self.algo_args, dict)
        names = {f.name for f in fields(kind)}
        return kind(**{name: value for name, value in self.algo_args.items() if name in names})

    def _plain(self) -> dict[str, Any]:
        return super()._plain() | {name: yaml_dtype(getattr(self, name)) for name in _DTYPES}

    def _check_values(self) -> None:
        one_of("mode", self.mode, list(PTQMode))
        one_of("backend", self.backend, list(BackendTarget))
        strings("opname_blacklist", self.opname_blacklist)
        for name, allowed in _DTYPES.items():
            setattr(self, name, dtype_name(getattr(self, name)))
            one_of(name, getattr(self, name), allowed)
        typed("precision_recovery", self.precision_recovery, PrecisionRecovery)
        typed("outliers_suppression", self.outliers_suppression, OutliersSuppressionType)
        for name, granularities in _GRANULARITIES.items():
            one_of(name, getattr(self, name), granularities)
        typed("group_size", self.group_size, int)
        typed("weight_clip", self.weight_clip, bool)

    def _check_combinations(self) -> None:
        weights, inputs, cache = self.weight_quant_dtype, self.act_quant_dtype, self.kvcache_quant_dtype
        grouped = self.weight_quant_granularity is QuantGranularity.PER_GROUP
        if inputs and not weights:
            raise ValueError("act_quant_dtype needs weight_quant_dtype: activations alone cannot be quantized")
        if self.act_quant_granularity is QuantGranularity.PER_TOKEN and not inputs:
            raise ValueError("act_quant_granularity PER_TOKEN needs act_quant_dtype int8")
        if self.kvcache_quant_granularity is QuantGranularity.PER_TOKEN and not cache:
            raise ValueError("kvcache_quant_granularity PER_TOKEN needs kvcache_quant_dtype int8")
        if grouped and self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size: got {self.group_size}, allowed with PER_GROUP: {_listed(GROUP_SIZES)}")
        if not grouped and self.group_size:
            raise ValueError(f"group_size: got {self.group_size}; it needs weight_quant_granularity PER_GROUP, or 0")
        if weights == "int8" and inputs and grouped:
            raise ValueError("int8 weights with int8 activations need weight_quant_granularity PER_CHANNEL")
        if weights == "qint4x2" and cache:
            raise ValueError("weight_quant_dtype qint4x2 cannot stand beside kvcache_quant_dtype int8")

    def _check_algorithms(self) -> None:
        weights, inputs = self.weight_quant_dtype, self.act_quant_dtype
        outliers, recovery = self.outliers_suppression, self.precision_recovery
        gptq, awq = recovery is PrecisionRecovery.GPTQ, outliers is OutliersSuppressionType.AWQ
        if (gptq or awq) and not weights:
            raise ValueError(f"{(recovery if gptq else outliers).name} needs weight_quant_dtype")
        if weights == "int8" and inputs and (gptq or awq):
            raise ValueError("AWQ and GPTQ are for weights alone: with int8 weights, leave act_quant_dtype None")
        if outliers not in (OutliersSuppressionType.NONE, OutliersSuppressionType.AWQ) and not inputs:
            raise ValueError(
                f"outliers_suppression {outliers.name} makes activations easier to quantize, and act_quant_dtype is "
                "None; set it to int8, or use NONE or AWQ"
            )
        if outliers is OutliersSuppressionType.OUTLIER_SUPPRESSION_LITE and (
            weights != "int8" or self.kvcache_quant_dtype
        ):
            raise ValueError(
                "OUTLIER_SUPPRESSION_LITE is for int8 weights and activations, without kvcache_quant_dtype"
            )
        self._check_algo_args()
        if weights == "qint4x2" and inputs:
            options = self.options(GPTQQuantConfig) if gptq else None
            per_token = self.act_quant_granularity is QuantGranularity.PER_TOKEN
            if not (options and options.desc_act and options.static_groups and per_token):
                raise ValueError(
                    "qint4x2 weights with int8 activations need precision_recovery GPTQ, "
                    "algo_args=GPTQQuantConfig(desc_act=True, static_groups=True) and act_quant_granularity PER_TOKEN"
                )

    def _check_algo_args(self) -> None:
        users: list[Any] = [
            kind
            for kind, used in (
                (GPTQQuantConfig, self.precision_recovery is PrecisionRecovery.GPTQ),
                (AWQConfig, self.outliers_suppression is OutliersSuppressionType.AWQ),
                (SmoothQuantConfig, self.outliers_suppression is OutliersSuppressionType.SMOOTH),
            )
            if used
        ]
        args = self.algo_args
        if is_dataclass(args):
            if type(args) not in users:
                wanted = _listed(kind.__name__ for kind in users) or "none, as neither uses any"
                raise ValueError(
                    f"algo_args: got {type(args).__name__}; precision_recovery {self.precision_recovery.name} and "
                    f"outliers_suppression {self.outliers_suppression.name} take {wanted}"
                )
            args = asdict(args)
        if not isinstance(args, dict):
            raise ValueError(f"algo_args: expected a mapping or an algorithm's configuration, got {args!r}")
        known = [f.name for kind in users for f in fields(kind)]
        for name in args:
            if name not in known:
                raise ValueError(f"algo_args: {unknown('option', str(name), known)}")
        self.algo_args = dict(args)
        for kind in users:
            self.options(kind)


def _listed(items: Any) -> str:
    return ", ".join(str(item) for item in items)
