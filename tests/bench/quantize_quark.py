"""One quantization by AMD Quark, measured: `quantize_quark.py MODEL RECIPE OUT TOKENS.npy`.

Runs in the environment of tests/lanes/quark.txt, with the same tokens, and its own defaults. torch.compile is off: on a
CPU it costs more than it saves.
"""

import dataclasses
import json
import os
from pathlib import Path

from resources import asked, cpu_seconds, report

os.environ["QUARK_DISABLE_COMPILE"] = "1"

# Scheme (below) and algorithms.
RECIPES = {
    "w4a16-gptq": ("int4", ["gptq"]),
    "w4a16-awq": ("int4", ["awq"]),
    "w3a16-gptq": ("int3", ["gptq"]),
    "w2a16-gptq": ("int2", ["gptq"]),
    "w8a8-rtn": ("int8-token", []),
    "w8a8-smoothquant": ("int8-token", ["smoothquant"]),
    "w8a8-static-rtn": ("int8-tensor", []),
    "w8a8-static-smoothquant": ("int8-tensor", ["smoothquant"]),
    "w4a4-rotation-gptq": ("int4-token", ["rotation", "gptq"]),
}


def main() -> None:
    given = asked(RECIPES)

    import numpy
    import torch
    import transformers
    from quark.torch import LLMTemplate, ModelQuantizer, export_safetensors
    from quark.torch.quantization.config import config as q
    from quark.torch.quantization.config.algo_configs import get_algo_config
    from quark.version import __version__

    int8 = q.Int8PerChannelSpec(ch_axis=0, symmetric=True)
    int4 = q.Int4PerGroupSpec(ch_axis=1, group_size=given.group_size)
    scheme, algorithms = RECIPES[given.recipe]
    weights, inputs = {
        "int4": (int4, None),
        "int3": (q.Int3PerGroupSpec(ch_axis=1, group_size=given.group_size), None),
        "int2": (q.Int2PerGroupSpec(ch_axis=1, group_size=32), None),
        "int8-token": (int8, q.Int8PerChannelSpec(ch_axis=1, symmetric=True, is_dynamic=True)),
        "int8-tensor": (int8, q.Int8PerTensorSpec()),
        "int4-token": (int4, q.Int4PerChannelSpec(ch_axis=1, symmetric=True, is_dynamic=True)),
    }[scheme]
    layers = {"weight": weights.to_quantization_spec()}
    if inputs is not None:
        layers["input_tensors"] = inputs.to_quantization_spec()
    LLMTemplate.register_scheme("bench", config=q.QLayerConfig(**layers))

    tokens = torch.from_numpy(numpy.load(given.tokens).astype("int64"))
    before = cpu_seconds()
    model = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype="auto").eval()
    template = LLMTemplate.get(model.config.model_type)
    better = {
        "smoothquant": {"alpha": 0.5},  # its own default, 1, leaves an int8 model worse than without
        "rotation": {"r2": True, "r4": True},  # R1 alone leaves down_proj as it is
    }
    settings = {
        name: dataclasses.replace(get_algo_config(name, model.config.model_type), **better[name])
        for name in algorithms
        if name in better
    }
    config = template.get_config(scheme="bench", algorithm=algorithms or None, algo_configs=settings)
    quantizer = ModelQuantizer(config)
    quantized = quantizer.freeze(quantizer.quantize_model(model, torch.utils.data.DataLoader(tokens, batch_size=1)))
    if scheme == "int3":  # it packs eight zero points at a time, and rows of these models have two groups
        export_safetensors(quantized, given.out, weight_format="fake_quantized")
        plain(Path(given.out) / "config.json")
    else:
        export_safetensors(quantized, given.out)
    report(quantize=cpu_seconds() - before, version=__version__, torch=torch.__version__)


def plain(config: Path) -> None:
    """Its readers would take even the floats of a fake-quantized folder for packed ones."""
    found = json.loads(config.read_text())
    del found["quantization_config"]
    config.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
