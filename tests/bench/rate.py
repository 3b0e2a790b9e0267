"""The machine's rate of float32 matrix products in torch, in operations per CPU second of one thread."""

import json

import torch
from resources import cpu_seconds

SIZE, REPEATS = 2048, 8


def main() -> None:
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    a @ b
    rates = []
    for _ in range(REPEATS):
        before = cpu_seconds()
        for _ in range(4):
            a @ b
        rates.append(4 * 2 * SIZE**3 / (cpu_seconds() - before))
    print(json.dumps({"rate": max(rates)}))


if __name__ == "__main__":
    main()
