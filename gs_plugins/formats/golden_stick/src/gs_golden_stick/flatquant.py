"""FlatQuant in msModelSlim's folder: before a layer's input is quantized, it goes through a Kronecker pair.

``left_trans`` ``(l, l)``, ``right_trans`` ``(r, r)``, and a ``clip_ratio`` ``(1,)``, all float32: a token becomes
``leftᵀ · x · right`` of its ``(l, r)`` features, and the scale of its codes is ``max|·| · clip_ratio / 7``.

Layout: exports of msModelSlim 26.1, the loader of vllm-ascend 0.23; limits: CANN 8.5's aclnnFlatQuant.
"""

import math

import numpy as np

from gs_core import Array, LayerInfo, LinearMap
from gs_core.arrays import astype, to_numpy
from gs_core.engines import FUSED, is_expert

LABEL = "W4A4_FLATQUANT_DYNAMIC"
PARTS = ("left_trans", "right_trans", "clip_ratio")
LARGEST, MULTIPLE = 256, 8
"""What the kernel takes: factors up to so many features, the right one a multiple of so many."""
_CLIP = 14 / 15
"""The kernel divides a range by 7 where our scales divide it by 7.5: with this ratio it makes the same ones."""


def sizes(features: int) -> tuple[int, int] | None:
    """The factors that the loader allots for so many features: those of one parity that are closest to each other.
    None for twice an odd number, which has none."""
    for left in range(math.isqrt(features), 0, -1):
        right = features // left
        if left * right == features and (left + right) % 2 == 0:
            return left, right
    return None


def unsupported(map: LinearMap, layer: LayerInfo) -> str | None:
    """Why a layer cannot have this map, or ``None``. A layer whose input features are divided among devices has on
    each the factors of its part: a map in blocks of such parts is one for that many devices."""
    if is_expert(layer.name):
        return "vLLM-Ascend maps no inputs of experts"
    features, found = layer.shape[1], map.sizes
    whole = any(layer.name.rpartition(".")[2] in family for family in FUSED)
    allotted = sizes(features if whole else map.block)
    if map.scale is not None or found != allotted:
        wanted = "not at all" if allotted is None else f"as {_text(allotted)}"
        return f"vLLM-Ascend factors {features} features {wanted}, not as {_text(found)}"
    if max(found) > LARGEST or found[1] % MULTIPLE:
        return f"its kernel takes factors up to {LARGEST}, the right one a multiple of {MULTIPLE}, not {_text(found)}"
    return None


def _text(sizes: tuple[int, ...]) -> str:
    return " · ".join(map(str, sizes))


def pack(map: LinearMap) -> dict[str, Array]:
    left, right = (np.eye(f, dtype=np.float32) if isinstance(f, int) else astype(f, "float32") for f in map.factors)
    return dict(zip(PARTS, (to_numpy(left), to_numpy(right), np.array([map.keep * _CLIP], np.float32)), strict=True))


def unpack(left: np.ndarray, right: np.ndarray, clip_ratio: np.ndarray) -> LinearMap:
    return LinearMap((left, right), keep=float(clip_ratio[0]) / _CLIP)
