"""One quantization by this project, measured: `quantize_ours.py MODEL RECIPE OUT TOKENS.npy`."""

import argparse

from resources import cpu_seconds, report


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "recipe", "out", "tokens"):
        parser.add_argument(name)
    given = parser.parse_args()

    import numpy
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401 - imported by the peers before they begin

    from gs_core import quantize

    tokens = numpy.load(given.tokens)
    before = cpu_seconds()
    samples, seq_len = tokens.shape
    made = quantize(
        given.model, given.recipe, given.out, calibration=tokens, samples=samples, seq_len=seq_len, restart=True
    )
    report(quantize=cpu_seconds() - before, bytes=made.data["bytes_after"], torch=torch.__version__)


if __name__ == "__main__":
    main()
