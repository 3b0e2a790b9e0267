"""The perplexity of a folder of AMD Quark's in float32: `perplexity_quark.py FOLDER WINDOWS.npy`.

Runs in the environment of tests/lanes/quark.txt. transformers opens these folders through Quark as well, but not those
with a rotation that is computed at run time; its own import does.
"""

import json
import os
import sys
from pathlib import Path

os.environ["QUARK_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "lanes"))
from transformers_perplexity import perplexity


def main() -> None:
    folder, windows = sys.argv[1:]
    import torch
    from quark.torch import import_model_from_safetensors
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model = import_model_from_safetensors(empty, model_dir=folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    print(json.dumps({"perplexity": perplexity(model.eval(), windows)}))


if __name__ == "__main__":
    main()
