"""The machine's rates of matrix products in torch, in operations per CPU second of one thread, by dtype: float32 by the
faster of the libraries that torch asks for exact products (gs_hf.products); int8 where the processor is fast at it."""

import json
import time

import torch

from gs_hf import int8
from gs_hf.products import fast_products

SIZE = 2048
REPEATS, ENOUGH = 32, 5.0
"""Products that are timed, and seconds after which no other begins: where a processor has no instructions for a dtype,
one takes a minute."""


def rate(dtype: torch.dtype) -> float:
    a, b = ((100 * torch.randn(SIZE, SIZE)).clamp(-100, 100).to(dtype) for _ in "ab")
    multiply = torch._int_mm if dtype == torch.int8 else torch.matmul
    multiply(a[:64], b)
    rates: list[float] = []
    started = time.process_time()
    while len(rates) < REPEATS and time.process_time() - started < ENOUGH:
        before = time.process_time()
        multiply(a, b)
        rates.append(2 * SIZE**3 / (time.process_time() - before))
    return max(rates)


if __name__ == "__main__":
    with fast_products("cpu"):
        dtypes = ("float32", "bfloat16", *(["int8"] if int8.fast("cpu") else []))
        print(json.dumps({name: rate(getattr(torch, name)) for name in dtypes}))
