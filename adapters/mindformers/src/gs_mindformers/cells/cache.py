"""The cell that takes a ``PagedAttentionMgr``'s place and keeps keys and values in int8, a scale for each channel.

On Ascend by the fused operators (``QuantV2``, ``ReshapeAndCache``, ``PagedAttention`` with the scales of the cache),
elsewhere by what they compute, in NumPy.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn
from mindspore.common.initializer import initializer

from gs_mindformers.tensors import to_numpy, to_tensor

MARKER = "._key_input_quantizer.t_scale"


def _new(shape: tuple[int, ...], dtype: Any, fill: str = "zeros") -> Parameter:
    return Parameter(initializer(fill, shape, dtype), requires_grad=False)


class QuantizedCache(nn.Cell):
    """``cell``: the ``PagedAttentionMgr`` it replaces, whose caches become int8, with its other settings."""

    def __init__(self, cell: nn.Cell):
        super().__init__()
        dtype, channels = cell.key_cache.dtype, int(cell.n_kv_heads) * int(cell.head_dim)
        self.n_heads, self.n_kv_heads, self.head_dim = int(cell.n_heads), int(cell.n_kv_heads), int(cell.head_dim)
        self.scale_value = float(cell.scale_value)
        self.fused = ms.get_context("device_target") == "Ascend"
        self.key_cache, self.value_cache = (_new(cell.key_cache.shape, ms.int8) for _ in range(2))
        self._key_input_quantizer, self._value_input_quantizer = (_Quantizer(channels, dtype) for _ in range(2))
        self.quant_pa = _Joint(channels, dtype)
        self._write, self._attend = cell.reshape_and_cache, cell.paged_attention

    def construct(
        self, key: ms.Tensor, value: ms.Tensor, slot_mapping: ms.Tensor, batch_valid_length: Any = None
    ) -> ms.Tensor:
        """Quantize and store ``(batch, length, heads * size)``, each token at its slot."""
        key, value = self._key_input_quantizer(key), self._value_input_quantizer(value)
        if self.fused:
            return self._write(key, value, self.key_cache, self.value_cache, slot_mapping)
        slots = to_numpy(slot_mapping).reshape(-1)
        for cache, codes in ((self.key_cache, key), (self.value_cache, value)):
            stored = to_numpy(cache)
            flat = stored.reshape(-1, *stored.shape[2:])
            flat[slots[slots >= 0]] = to_numpy(codes).reshape(len(slots), *stored.shape[2:])[slots >= 0]
            cache.set_data(ms.Tensor(flat.reshape(stored.shape)))
        return key

    def paged_attn(
        self,
        query: ms.Tensor,
        batch_valid_length: ms.Tensor,
        block_tables: ms.Tensor,
        attn_mask: ms.Tensor | None = None,
        q_seq_lens: ms.Tensor | None = None,
    ) -> ms.Tensor:
        """The attention of one new token of each sample, ``(batch, 1, heads * size)``, over all that is stored."""
        scale, zero = self.quant_pa.k_v_scale_fusion, self.quant_pa.k_v_zp_fusion
        if self.fused:
            caches = self.key_cache, self.value_cache
            return self._attend(query, *caches, block_tables, batch_valid_length, scale, zero)
        scales, zeros = _from_bits(to_numpy(scale)), to_numpy(zero).astype(np.float32)
        queries, found = to_numpy(query), []
        for sample, length in enumerate(to_numpy(batch_valid_length).reshape(-1)):
            blocks = to_numpy(block_tables)[sample]
            key, value = (
                ((to_numpy(cache)[blocks].reshape(-1, scales.shape[1])[:length] + zeros[n]) * scales[n]).reshape(
                    length, self.n_kv_heads, self.head_dim
                )
                for n, cache in enumerate((self.key_cache, self.value_cache))
            )
            found.append(self._one(queries[sample], key, value))
        return to_tensor(np.stack(found).astype(queries.dtype))

    def _one(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        heads = query.astype(np.float32).reshape(self.n_kv_heads, -1, self.head_dim)
        scores = np.einsum("hqd,thd->hqt", heads, key) * self.scale_value
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqt,thd->hqd", weights / weights.sum(-1, keepdims=True), value)
        return mixed.reshape(query.shape)


class _Quantizer(nn.Cell):
    """int8 of keys or values, channel by channel."""

    def __init__(self, channels: int, dtype: Any):
        super().__init__()
        from gs_mindformers.cells.products import products

        self.t_scale, self.t_zp = _new((channels,), dtype, "ones"), _new((channels,), ms.int8)
        self._quantize = products()(8, 0, dtype, by_rows=True).quantize

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self._quantize(x, self.t_scale, self.t_zp)


class _Joint(nn.Cell):
    """The numbers of keys and values as ``PagedAttention`` takes them; the zero points are added."""

    def __init__(self, channels: int, dtype: Any):
        super().__init__()
        narrow = dtype == ms.bfloat16
        self.k_v_scale_fusion = _new((2, channels), ms.float16 if narrow else ms.int64, "ones")
        self.k_v_zp_fusion = _new((2, channels), ms.float16 if narrow else ms.int32)


def _from_bits(scale: np.ndarray) -> np.ndarray:
    """float32 of int64 that hold its bits."""
    return (scale & 0xFFFFFFFF).astype(np.uint32).view(np.float32) if scale.dtype == np.int64 else scale.astype("f4")
