"""Load folders into MindFormers' inference network of Qwen3 with its own loader.

    python mindspore_inference.py RESULT QUANTIZATION=FOLDER ...

Writes into RESULT, by folder, the parameters of the network as they are then (dtype, shape, sum), and which of them the
folder lacked.
"""

import json
import sys
from pathlib import Path

import mindspore
import numpy as np
from mindformers import MindFormerConfig
from mindformers.core.context.build_context import MFContextOperator
from mindformers.models.qwen3.configuration_qwen3 import Qwen3Config
from mindformers.models.qwen3.modeling_qwen3_infer import InferenceQwen3ForCausalLM


def load(folder: str, quantization: str) -> dict:
    sizes = json.loads(Path(folder, "config.json").read_text())
    config = Qwen3Config(
        **sizes, quantization=quantization, compute_dtype="float16", params_dtype="float16", use_past=True
    )
    config.pretrained_model_dir = folder
    network = InferenceQwen3ForCausalLM(config)
    parameters = network.model.get_params_dict()
    weights = network._safetensors_weights_iterator(network.get_weights_files(folder))
    loaded = network.model.load_weights(weights, network.generate_mapping(), is_hf_weight=True)
    found = {
        n: [str(p.dtype), list(p.shape), float(p.asnumpy().astype(np.float64).sum())] for n, p in parameters.items()
    }
    return {"parameters": found, "missing": sorted(set(parameters) - loaded)}


def main() -> None:
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE, pynative_synchronize=True)
    MFContextOperator(MindFormerConfig(use_legacy=False))
    asked = (argument.split("=", 1) for argument in sys.argv[2:])
    found = {Path(folder).name: load(folder, quantization) for quantization, folder in asked}
    Path(sys.argv[1]).write_text(json.dumps(found))


main()
