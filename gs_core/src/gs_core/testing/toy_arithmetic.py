"""What the toy computes with, in the array library and the dtype of its arguments."""

import numpy as np

from gs_core.arrays import Array, namespace
from gs_core.testing.toy_files import ToyConfig


def rms_norm(x: Array, weight: Array) -> Array:
    xp = namespace(x)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * weight


def silu(x: Array) -> Array:
    return x / (1 + namespace(x).exp(-x))


def attention(q: Array, k: Array, v: Array, shape: ToyConfig) -> Array:
    """Causal attention, grouped key and value heads, no positions. ``(batch, length, heads * head)``."""
    xp = namespace(q)
    batch, length, _ = q.shape

    def by_head(x: Array, share: int) -> Array:
        return xp.permute_dims(xp.reshape(x, (batch, length, shape.kv_heads, share, shape.head)), (0, 2, 3, 1, 4))

    q, k, v = by_head(q, shape.heads // shape.kv_heads), by_head(k, 1), by_head(v, 1)
    scores = q @ xp.matrix_transpose(k) / shape.head**0.5
    seen = xp.asarray(np.tri(length, dtype=bool))
    scores = xp.where(seen, scores, xp.full_like(scores, -float("inf")))
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    mixed = weights / xp.sum(weights, axis=-1, keepdims=True) @ v
    return xp.reshape(xp.permute_dims(mixed, (0, 3, 1, 2, 4)), (batch, length, -1))


def to_float32(x: Array) -> np.ndarray:
    """An array of any namespace, on the CPU, as NumPy's."""
    return np.asarray(x if isinstance(x, np.ndarray) else np.from_dlpack(x), np.float32)
