"""The machine's rates of matrix products in torch, in operations per CPU second of one thread, by dtype: float32 by the
faster of the libraries that torch asks for exact products (gs_hf.products)."""

import json
import time

import torch

from gs_hf.products import fast_products

SIZE = 2048
REPEATS, ENOUGH = 32, 5.0
"""Products that are timed, and seconds after which no other begins: where a processor has no instructions for a dtype,
one takes a minute."""


def rate(dtype: torch.dtype) -> float:
    a, b = torch.randn(SIZE, SIZE).to(dtype), torch.randn(SIZE, SIZE).to(dtype)
    a[:64] @ b
    rates: list[float] = []
    started = time.process_time()
    while len(rates) < REPEATS and time.process_time() - started < ENOUGH:
        before = time.process_time()
        a @ b
        rates.append(2 * SIZE**3 / (time.process_time() - before))
    return max(rates)


if __name__ == "__main__":
    with fast_products("cpu"):
        print(json.dumps({name: rate(getattr(torch, name)) for name in ("float32", "bfloat16")}))
