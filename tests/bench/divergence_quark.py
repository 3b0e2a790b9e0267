"""Divergence and perplexity of a folder of AMD Quark's in float32: `divergence_quark.py FOLDER FLOAT WINDOWS.npy`.

Runs in the environment of tests/lanes/quark.txt. transformers opens these folders through Quark as well, but not those
with a rotation that is computed at run time; its own import does.
"""

import json
import os
import sys
from pathlib import Path

os.environ["QUARK_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "lanes"))
from transformers_divergence import figures


def main() -> None:
    folder, original, windows = sys.argv[1:]
    import torch
    from quark.torch import import_model_from_safetensors
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model = import_model_from_safetensors(empty, model_dir=folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    floats = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()
    print(json.dumps(figures(model.eval(), floats, windows)))


if __name__ == "__main__":
    main()
