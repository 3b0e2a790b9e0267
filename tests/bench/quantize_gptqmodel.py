"""One quantization by GPTQModel, measured: `quantize_gptqmodel.py MODEL RECIPE OUT TOKENS.npy`.

Runs in the environment of tests/lanes/gptqmodel.txt, with the same tokens, and its own defaults.
"""

import os

from resources import asked, cpu_seconds, report

# It gives each task a worker, and fails before it begins on a machine of two processors.
os.environ["GPTQMODEL_CPU_WORKERS"] = "2"

RECIPES = {
    "w4a16-gptq": {"bits": 4},
    "w4a16-awq": {"bits": 4, "method": "awq", "format": "gemm"},
    "w3a16-gptq": {"bits": 3},
    "w2a16-gptq": {"bits": 2, "group_size": 32},
}


def main() -> None:
    given = asked(RECIPES)

    import numpy
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.version import __version__

    tokens = torch.from_numpy(numpy.load(given.tokens).astype("int64"))
    before = cpu_seconds()
    model = GPTQModel.load(
        given.model, QuantizeConfig(**{"group_size": given.group_size} | RECIPES[given.recipe]), device="cpu"
    )
    model.quantize([{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in tokens])
    model.save(given.out)
    report(quantize=cpu_seconds() - before, version=__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
