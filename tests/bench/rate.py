"""The machine's rates of matrix products in torch, in operations per CPU second of one thread, by dtype."""

import json

import torch
from resources import cpu_seconds

SIZE, REPEATS = 2048, 8


def rate(dtype: torch.dtype) -> float:
    a, b = torch.randn(SIZE, SIZE).to(dtype), torch.randn(SIZE, SIZE).to(dtype)
    a @ b
    rates = []
    for _ in range(REPEATS):
        before = cpu_seconds()
        for _ in range(4):
            a @ b
        rates.append(4 * 2 * SIZE**3 / (cpu_seconds() - before))
    return max(rates)


if __name__ == "__main__":
    print(json.dumps({name: rate(getattr(torch, name)) for name in ("float32", "bfloat16")}))
