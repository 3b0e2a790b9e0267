"""From configurations to one recipe: a pure function of the configurations and the names of layers and caches."""

import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gs_compat.algorithms import AWQConfig, GPTQQuantConfig, SmoothQuantConfig
from gs_compat.inner import InnerPTQConfig
from gs_compat.policies import Configs, Policies, assign
from gs_compat.words import OutliersSuppressionType as Outliers
from gs_compat.words import PrecisionRecovery, QuantGranularity
from gs_schemas import AlgorithmSpec, QuantizationArgs, QuantizationScheme, Recipe, validate

NETWORK_FORMAT, FOLDER_FORMAT = "golden_stick_network", "golden_stick"
"""The parameters of a network as its own cells name them, and a folder for engines."""


@dataclass(frozen=True)
class Rule:
    """What is done to a layer or a cache."""

    scheme: QuantizationScheme
    algorithms: tuple[AlgorithmSpec, ...]


def translate(
    config: InnerPTQConfig,
    policies: Policies,
    layers: Iterable[str],
    caches: Iterable[str] = (),
    format: str = NETWORK_FORMAT,
) -> Recipe:
    """The recipe that says to our line what the configurations say.

    layers: names of the network's linear layers, caches: names of the modules that cache keys and values, both as
    the adapter gives them, without the leading ``network.``.

    Raises ``ValueError`` (``SchemaError`` is one) for policies that contradict each other, and when there is nothing to
    quantize.
    """
    layers, caches = list(layers), list(caches)
    return recipe_for(assign([*layers, *caches], config, policies), caches, format)


def recipe_for(configs: Configs, caches: Collection[str] = (), format: str = NETWORK_FORMAT) -> Recipe:
    """As ``translate``, of what ``policies.assign`` found. caches: which of the names are caches."""
    rules = {name: (_cache if name in caches else layer_rule)(of) for name, of in configs.items() if of}
    groups: dict[str, list[str]] = {}
    kinds: dict[str, Rule] = {}
    for name, rule in rules.items():
        if rule is not None:
            kinds[repr(rule)] = rule
            groups.setdefault(repr(rule), []).append(name)
    if not caches and any(of and of.kvcache_quant_dtype for of in configs.values()):
        warnings.warn("kvcache_quant_dtype has no effect: nothing in this network caches keys and values", stacklevel=3)
    if not groups:
        raise ValueError("nothing to quantize: no dtype is set, or every layer is blacklisted")
    base, *others = groups
    data: dict[str, Any] = {
        "scheme": kinds[base].scheme,
        "algorithms": kinds[base].algorithms,
        "ignore": ["lm_head", *(name for name in configs if rules.get(name) is None)],
        "overrides": [
            {"match": _exactly(groups[key]), "scheme": kinds[key].scheme, "algorithms": kinds[key].algorithms}
            for key in others
        ],
        "format": format,
    }
    return validate(Recipe, data, "PTQConfig and layer_policies")


def _exactly(names: Sequence[str]) -> str:
    """A pattern for these names and no others."""
    return f"re:(?:{'|'.join(re.escape(name) for name in names)})$"


def layer_rule(config: InnerPTQConfig) -> Rule | None:
    """None when its weights stay in floating point."""
    if config.weight_quant_dtype is None:
        return None
    return Rule(QuantizationScheme(weights=_weights(config), inputs=_inputs(config)), _algorithms(config))


def _cache(config: InnerPTQConfig) -> Rule | None:
    if config.kvcache_quant_dtype is None:
        return None
    per_token = config.kvcache_quant_granularity is QuantGranularity.PER_TOKEN
    args = QuantizationArgs(
        format="int8",
        granularity="token" if per_token else "channel",
        symmetric=per_token or config.kvcache_symmetric,
        dynamic=per_token,
    )
    return Rule(QuantizationScheme(kv_cache=args), (AlgorithmSpec(name="kv_cache"),))


def _weights(config: InnerPTQConfig) -> QuantizationArgs:
    grouped = config.weight_quant_granularity is QuantGranularity.PER_GROUP
    # Clipping is a search for the range with the smallest error; the plain algorithms do none of their own.
    clipped = config.weight_clip or config.outliers_suppression is Outliers.OUTLIER_SUPPRESSION_LITE
    return QuantizationArgs(
        format="int8" if config.weight_quant_dtype == "int8" else "int4",
        granularity="group" if grouped else "channel",
        group_size=config.group_size or None,
        symmetric=config.weight_symmetric,
        observer="mse" if clipped else "minmax",
    )


def _inputs(config: InnerPTQConfig) -> QuantizationArgs | None:
    if config.act_quant_dtype is None:
        return None
    per_token = config.act_quant_granularity is QuantGranularity.PER_TOKEN
    return QuantizationArgs(
        format="int8",
        granularity="token" if per_token else "tensor",
        symmetric=per_token or config.act_symmetric,
        dynamic=per_token,
    )


def _algorithms(config: InnerPTQConfig) -> tuple[AlgorithmSpec, ...]:
    """First what suppresses outliers, last what rounds."""
    gptq = config.precision_recovery is PrecisionRecovery.GPTQ
    rounding = _gptq(config) if gptq else AlgorithmSpec(name="rtn")
    match config.outliers_suppression:
        case Outliers.SMOOTH:
            alpha = config.options(SmoothQuantConfig).alpha
            return AlgorithmSpec(name="smoothquant", options={"alpha": alpha, "online": True}), rounding
        case Outliers.OUTLIER_SUPPRESSION_LITE:
            return AlgorithmSpec(name="smoothquant", options={"alpha": "auto", "online": True}), rounding
        case Outliers.OUTLIER_SUPPRESSION_PLUS:
            return AlgorithmSpec(name="osp"), rounding
        case Outliers.AWQ:
            return (_awq(config), rounding) if gptq else (_awq(config),)
    return (rounding,)


def _gptq(config: InnerPTQConfig) -> AlgorithmSpec:
    """Where the largest activations come first, the scales of groups are chosen before: a group must stay a run of
    neighbours, which is all that a Golden Stick file can say."""
    asked = config.options(GPTQQuantConfig)
    options = {
        "act_order": asked.desc_act,
        "static_groups": asked.static_groups or asked.desc_act,
        "damping": asked.damp_percent,
        "block_size": asked.block_size,
    }
    return AlgorithmSpec(name="gptq", options=options)


def _awq(config: InnerPTQConfig) -> AlgorithmSpec:
    asked = config.options(AWQConfig)
    options = {
        "duo_scaling": asked.duo_scaling,
        "smooth_alpha": _list(asked.smooth_alpha),
        "weight_clip_ratio": _list(asked.weight_clip_ratio),
    }
    return AlgorithmSpec(name="awq", options=options)


def _list(value: list[float] | float) -> list[float]:
    return value if isinstance(value, list) else [value]
