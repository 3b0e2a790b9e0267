"""One quantization by llm-compressor, measured: `quantize_llmcompressor.py MODEL RECIPE OUT TOKENS.npy`.

Runs in the environment of tests/lanes/llmcompressor.txt, with the same tokens, and its own defaults.
"""

from resources import asked, cpu_seconds, report

RECIPES = (
    "w4a16-gptq",
    "w4a16-awq",
    "w3a16-gptq",
    "w3a16-awq",
    "w2a16-gptq",
    "w8a8-smoothquant",
    "w8a8-smoothquant-gptq",
    "w8a8-static-smoothquant",
    "w8a8-static-smoothquant-gptq",
    "w4a4-spinquant-gptq",
    "kv8",
)


def main() -> None:
    given = asked(RECIPES)

    import numpy
    import torch
    import transformers
    from datasets import Dataset
    from llmcompressor import __version__, oneshot

    tokens = numpy.load(given.tokens)
    recipe = modifiers(given.recipe, given.group_size)
    before = cpu_seconds()
    model = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype="auto")
    rows = {"input_ids": tokens.tolist(), "attention_mask": numpy.ones_like(tokens).tolist()}
    oneshot(
        model=model,
        recipe=recipe,
        dataset=Dataset.from_dict(rows),
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(given.out, save_compressed=True)
    report(quantize=cpu_seconds() - before, version=__version__, torch=torch.__version__)


def modifiers(name: str, group_size: int) -> list[object]:
    """What llm-compressor calls a recipe."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.modifiers.transform.spinquant import SpinQuantModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    # AWQ pins every batch for an accelerator, and raises where there is none. Nothing else of it needs one.
    IntermediatesCache.pin_memory = lambda self, index: None

    if name == "kv8":
        return [QuantizationModifier(kv_cache_scheme=QuantizationArgs(num_bits=8, strategy="tensor"))]
    scheme, _, methods = name.replace("-static-", "_static-").partition("-")
    bits, group = int(scheme[1]), 32 if scheme == "w2a16" else group_size
    weights = {"strategy": "channel"} if bits == 8 else {"strategy": "group", "group_size": group}
    inputs = {
        "w8a8": QuantizationArgs(num_bits=8, strategy="token", dynamic=True),
        "w8a8_static": QuantizationArgs(num_bits=8, strategy="tensor"),
        "w4a4": QuantizationArgs(num_bits=4, strategy="token", dynamic=True),
    }
    args = QuantizationArgs(num_bits=bits, **weights)
    layers = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs.get(scheme))
    on_all = {"config_groups": {"all": layers}, "ignore": ["lm_head"]}
    found: list[object] = []
    if "spinquant" in methods:
        found.append(SpinQuantModifier(rotations=["R1", "R2", "R4"]))
    if "smoothquant" in methods:
        found.append(SmoothQuantModifier())
    if "awq" in methods:
        found.append(AWQModifier())
    return [*found, (GPTQModifier if "gptq" in methods else QuantizationModifier)(**on_all)]


if __name__ == "__main__":
    main()
