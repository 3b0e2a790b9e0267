"""Small decoders out of every kind of linear cell. Imported where MindSpore is: by the fixture ``network``."""

from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.models.llama.llama_layer import LlamaRMSNorm
from mindformers.modules.layers import Linear
from mindformers.parallel_core.inference.tensor_parallel import layers as parallel
from mindspore import nn, ops

HIDDEN, INNER, HEADS, HEAD, VOCABULARY, EXPERTS = 64, 96, 4, 16, 96, 4
OF = ms.float32
FLOAT = {"compute_dtype": OF, "param_init_type": OF}
CONFIG = SimpleNamespace(params_dtype=OF, compute_dtype=OF)


class Mine(Linear):
    """A subclass, as a user's network may have."""


class Decoder(nn.Cell):
    """Embedding, two blocks, norm, head."""

    def __init__(self, block: type):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.CellList([block() for _ in range(2)])
        self.norm = LlamaRMSNorm(HIDDEN, fused_kernel=False)
        self.head = nn.Dense(HIDDEN, VOCABULARY, has_bias=False)

    def construct(self, tokens: ms.Tensor) -> ms.Tensor:
        x = self.embedding(tokens)
        for block in self.layers:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Cell):
    """Pre-norm attention and gated product; ``make(rows, columns)`` gives its layers."""

    def __init__(self, make: Any):
        super().__init__()
        self.attention_norm, self.ffn_norm = (LlamaRMSNorm(HIDDEN, fused_kernel=False) for _ in range(2))
        self.q, self.k, self.v, self.o = (make(HIDDEN, HIDDEN) for _ in range(4))
        self.gate, self.up, self.down = make(INNER, HIDDEN), make(INNER, HIDDEN), make(HIDDEN, INNER)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        n = self.attention_norm(x)
        x = x + self.o(attend(self.q(n), self.k(n), self.v(n)))
        n = self.ffn_norm(x)
        return x + self.down(ops.silu(self.gate(n)) * self.up(n))


class Mixed(Block):
    """Transposed and plain, with biases and without, of this class and that."""

    def __init__(self) -> None:
        kinds = iter([
            lambda r, c: Linear(c, r, transpose_b=False, **FLOAT),
            lambda r, c: Linear(c, r, has_bias=False, **FLOAT),
            lambda r, c: Mine(c, r, **FLOAT),
            lambda r, c: nn.Dense(c, r),
            lambda r, c: Mine(c, r, transpose_b=False, has_bias=False, **FLOAT),
            lambda r, c: parallel.ReplicatedLinear(c, r, config=CONFIG, bias=False, compute_dtype=OF),
            lambda r, c: parallel.RowParallelLinear(
                c, r, config=CONFIG, bias=False, input_is_parallel=True, transpose_b=False, compute_dtype=OF
            ),
        ])  # fmt: skip
        super().__init__(lambda rows, columns: next(kinds)(rows, columns))


class Fused(nn.Cell):
    """MindFormers' inference layers: query, key and value in one, gate and up in one."""

    def __init__(self) -> None:
        super().__init__()
        made = {"config": CONFIG, "compute_dtype": OF}
        self.input_layernorm, self.pre_mlp_layernorm = (LlamaRMSNorm(HIDDEN, fused_kernel=False) for _ in range(2))
        self.linear_qkv = parallel.QKVParallelLinear(HIDDEN, HEAD, HEADS, HEADS, bias=True, **made)
        self.linear_proj = parallel.RowParallelLinear(HIDDEN, HIDDEN, bias=False, input_is_parallel=True, **made)
        self.linear_fc1 = parallel.MergedColumnParallelLinear(HIDDEN, INNER, bias=False, **made)
        self.linear_fc2 = parallel.ColumnParallelLinear(INNER, HIDDEN, bias=False, **made)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        q, k, v = ops.split(self.linear_qkv(self.input_layernorm(x)), HIDDEN, axis=-1)
        x = x + self.linear_proj(attend(q, k, v))
        gate, up = ops.split(self.linear_fc1(self.pre_mlp_layernorm(x)), INNER, axis=-1)
        return x + self.linear_fc2(ops.silu(gate) * up)


class Mixture(Block):
    """Every token goes to one of four experts, by a router; their layers are stacked, products grouped."""

    def __init__(self) -> None:
        super().__init__(lambda rows, columns: Linear(columns, rows, has_bias=False, **FLOAT))
        del self.gate, self.up, self.down
        self.router = nn.Dense(HIDDEN, EXPERTS, has_bias=False)
        grouped = {"expert_num": EXPERTS, "use_gmm": True, **FLOAT}
        self.w1 = Linear(HIDDEN, INNER, has_bias=False, **grouped)
        self.w2 = Linear(INNER, HIDDEN, has_bias=True, **grouped)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        n = self.attention_norm(x)
        x = x + self.o(attend(self.q(n), self.k(n), self.v(n)))
        n = self.ffn_norm(x).reshape(-1, HIDDEN)
        chosen = self.router(n).asnumpy().argmax(-1)
        order = np.argsort(chosen, kind="stable")
        ends = ms.Tensor(np.cumsum(np.bincount(chosen, minlength=EXPERTS)))
        y = self.w2(ops.silu(self.w1(n[ms.Tensor(order)], ends)), ends)
        return x + y[ms.Tensor(np.argsort(order))].reshape(x.shape)


def attend(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
    """Causal attention of four heads, no positions."""
    batch, length, _ = q.shape
    q, k, v = (t.reshape(batch, length, HEADS, HEAD).transpose(0, 2, 1, 3) for t in (q, k, v))
    scores = ops.matmul(q, k.transpose(0, 1, 3, 2)) / HEAD**0.5
    hidden = ms.Tensor(np.where(np.tri(length, dtype=bool), 0, -1e9).astype(np.float32))
    mixed = ops.matmul(ops.softmax(scores + hidden, -1), v)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, length, -1)


BLOCKS = {"mixed": Mixed, "fused": Fused, "mixture": Mixture}
