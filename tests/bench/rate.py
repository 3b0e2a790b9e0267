"""The machine's rates of matrix products in torch, in operations per CPU second of one thread: of float32, and of what
the blocks of a bfloat16 model multiply in."""

import json

import torch
from resources import cpu_seconds

from gs_hf.running import fast_dtype

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


def main() -> None:
    print(json.dumps({"float32": rate(torch.float32), "model": rate(fast_dtype("bfloat16", "cpu"))}))


if __name__ == "__main__":
    main()
