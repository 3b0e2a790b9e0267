"""A checkpoint opened by transformers with compressed-tensors, and none of ours: what two scripts share."""

import argparse
import os
import sys
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"


def arguments(description: str, data: str, dtype: str) -> argparse.Namespace:
    """The command line `FOLDER DATA [--dtype] [--dequantize]`; `dtype` is the default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder")
    parser.add_argument(data)
    parser.add_argument("--dtype", default=dtype, help="of the activations: auto (the checkpoint's), float32 …")
    parser.add_argument(
        "--dequantize",
        action="store_true",
        help="the library dequantizes the weights while it loads, and leaves activations as they are: "
        "the only way that compressed-tensors 0.20 opens asymmetric packed weights",
    )
    return parser.parse_args()


def load(folder: str, dtype: str, dequantize: bool) -> Any:
    """The causal language model in `folder`, ready to run on the CPU."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **how).eval()


def assert_nothing_of_ours() -> None:
    """No module of this project is imported in this process."""
    ours = sorted(name for name in sys.modules if name.startswith("gs_"))
    assert not ours, f"imported: {', '.join(ours)}"
