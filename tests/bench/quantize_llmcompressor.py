"""One quantization by llm-compressor, measured: `quantize_llmcompressor.py MODEL RECIPE OUT TOKENS.npy`.

Runs in the environment of tests/lanes/llmcompressor.txt, with the same tokens, and its own defaults.
"""

import argparse

from resources import cpu_seconds, report


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "recipe", "out", "tokens"):
        parser.add_argument(name)
    given = parser.parse_args()

    import numpy
    import torch
    import transformers
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.quant_scheme import INT8_W8A8
    from datasets import Dataset
    from llmcompressor import __version__, oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    on_all = {"targets": ["Linear"], "ignore": ["lm_head"]}
    static = QuantizationScheme(
        targets=["Linear"],
        weights=INT8_W8A8["weights"],
        input_activations=QuantizationArgs(num_bits=8, strategy="tensor", symmetric=True, dynamic=False),
    )
    w8a8 = QuantizationModifier(scheme="W8A8", **on_all)
    w8a8_static = QuantizationModifier(config_groups={"all": static}, ignore=["lm_head"])
    recipe = {
        "w4a16-rtn": [QuantizationModifier(scheme="W4A16", **on_all)],
        "w4a16-gptq": [GPTQModifier(scheme="W4A16", **on_all)],
        "w8a8-rtn": [w8a8],
        "w8a8-smoothquant": [SmoothQuantModifier(), w8a8],
        "w8a8-static-rtn": [w8a8_static],
        "w8a8-static-smoothquant": [SmoothQuantModifier(), w8a8_static],
    }[given.recipe]

    tokens = numpy.load(given.tokens)
    before = cpu_seconds()
    model = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype="auto")
    rows = {"input_ids": tokens.tolist(), "attention_mask": numpy.ones_like(tokens).tolist()}
    data = {} if given.recipe in ("w4a16-rtn", "w8a8-rtn") else {"dataset": Dataset.from_dict(rows)}
    oneshot(
        model=model,
        recipe=recipe,
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
        shuffle_calibration_samples=False,
        **data,
    )
    model.save_pretrained(given.out, save_compressed=True)
    report(quantize=cpu_seconds() - before, version=__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
