"""Which configuration a layer gets: the network's own, a policy's, a fallback's, or none."""

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from gs_compat.inner import InnerPTQConfig
from gs_compat.words import LayerQuantizeAlgo, OutliersSuppressionType, PrecisionRecovery, QuantGranularity

ROOT = "network."
"""What the names that regular expressions and blacklists are matched against begin with."""
Policies = Mapping[str, InnerPTQConfig | None]
"""Regular expression → configuration."""
Configs = Mapping[str, InnerPTQConfig | None]
"""Name of a layer or cache → configuration; None for what stays in floating point."""


def checked(policies: Any) -> "OrderedDict[str, InnerPTQConfig | None]":
    """Layer policies as ``PTQ`` keeps them: regular expression → configuration, ``None`` for layers that stay in
    floating point. The caller's own stay as they are.

    Raises ``TypeError`` unless it is an ``OrderedDict`` of regular expressions and ``PTQConfig``.
    """
    if not isinstance(policies, OrderedDict):
        raise TypeError(f"layer_policies: expected an OrderedDict, got {type(policies).__name__}")
    found: OrderedDict[str, InnerPTQConfig | None] = OrderedDict()
    for pattern, config in policies.items():
        if not isinstance(pattern, str):
            raise TypeError(f"layer_policies: a key is a regular expression, got {pattern!r}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise TypeError(f"layer_policies: '{pattern}' is not a regular expression: {error}") from None
        found[pattern] = None if config is None else InnerPTQConfig.inner_config(config)
    return found


def assign(names: Iterable[str], config: InnerPTQConfig, policies: Policies) -> dict[str, InnerPTQConfig | None]:
    """The configuration of every layer by name, ``None`` for those that stay in floating point.

    A policy applies where its expression matches (``re.match``) ``network.`` and the layer's name. Blacklists hold
    parts of names; those of the configuration that applies count.

    Raises ``ValueError`` where two policies match. Warns of policies that match nothing.
    """
    names = list(names)
    found = {name: _of(name, config, policies) for name in names}
    for pattern in policies:
        if not any(re.match(pattern, ROOT + name) for name in names):
            shown = f"layers look like '{ROOT}{names[0]}'" if names else "there are no layers"
            warnings.warn(f"layer_policies: '{pattern}' matches no layer; {shown}", stacklevel=2)
    return found


def _of(name: str, config: InnerPTQConfig, policies: Policies) -> InnerPTQConfig | None:
    full = ROOT + name
    matching = [pattern for pattern in policies if re.match(pattern, full)]
    if len(matching) > 1:
        raise ValueError(f"layer_policies: '{matching[0]}' and '{matching[1]}' both match '{full}'; narrow one of them")
    chosen = policies[matching[0]] if matching else config
    if chosen is None or any(_holds(name, part) for part in chosen.opname_blacklist):
        return None
    for part, to in chosen.fallback_blacklist.items():
        if _holds(name, part):
            return fallback(chosen, LayerQuantizeAlgo.from_str(str(to)))
    return chosen


def _holds(name: str, part: str) -> bool:
    """Whether a part stands in a name. The root's own letters do not count: "wo" would be in every "network"."""
    return part.removeprefix(ROOT) in name


def fallback(config: InnerPTQConfig, to: LayerQuantizeAlgo) -> InnerPTQConfig:
    """A simpler treatment of a layer: int8 weights rounded to nearest, activations as the word says."""
    per_token = to is LayerQuantizeAlgo.A8DYNAMICW8
    return replace(
        config,
        algo_args={},
        weight_quant_dtype="int8",
        weight_quant_granularity=QuantGranularity.PER_CHANNEL,
        group_size=0,
        act_quant_dtype=None if to is LayerQuantizeAlgo.A16W8 else "int8",
        act_quant_granularity=QuantGranularity.PER_TOKEN if per_token else QuantGranularity.PER_TENSOR,
        precision_recovery=PrecisionRecovery.NONE,
        outliers_suppression=OutliersSuppressionType.NONE,
    )
