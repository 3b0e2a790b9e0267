"""The plan: every layer's adapter, algorithms, scheme, format and kernel, with the reason, before a weight is read."""

from gs_core.planning.group_size import fit_groups, is_preset, shared_in_features
from gs_core.planning.layers import objections
from gs_core.planning.loading import load_algorithm, load_format, names_of
from gs_core.planning.making import make
from gs_core.planning.plan import CacheRow, Plan, QuantizedSource, Row, static_inputs
from gs_core.planning.size import planned_bytes

__all__ = [
    "CacheRow",
    "Plan",
    "QuantizedSource",
    "Row",
    "fit_groups",
    "is_preset",
    "load_algorithm",
    "load_format",
    "make",
    "names_of",
    "objections",
    "planned_bytes",
    "shared_in_features",
    "static_inputs",
]
