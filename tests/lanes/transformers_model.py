"""A checkpoint opened by transformers with compressed-tensors, and none of ours: what two scripts share."""

import argparse
import json
import os
import sys
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"


def arguments(description: str, data: str, dtype: str) -> argparse.Namespace:
    """The command line `FOLDER DATA [--dtype] [--dequantize] [--transforms]`; `dtype` is the default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder")
    parser.add_argument(data)
    parser.add_argument("--dtype", default=dtype, help="of the activations: auto (the checkpoint's), float32 …")
    parser.add_argument(
        "--dequantize",
        action="store_true",
        help="dequantize the weights while loading, and leave activations as they are",
    )
    parser.add_argument("--transforms", action="store_true", help="apply the checkpoint's transform_config, if any")
    return parser.parse_args()


def load(folder: str, dtype: str, dequantize: bool, transforms: bool = False) -> Any:
    """The causal language model in `folder`, ready to run on the CPU. `transforms`: apply
    transform_config with compressed-tensors, because transformers 5.23 ignores it."""
    from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

    how: dict[str, Any] = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    if transforms:  # they are applied below, so quant_method is restored
        how["config"] = AutoConfig.from_pretrained(folder)
        quantization = getattr(how["config"], "quantization_config", {})
        if "quant_method_with_transforms" in quantization:
            quantization["quant_method"] = quantization.pop("quant_method_with_transforms")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **how).eval()
    if transforms:
        from compressed_tensors.transform import TransformConfig, apply_transform_config

        with open(os.path.join(folder, "config.json")) as file:
            config = json.load(file).get("quantization_config", {}).get("transform_config") or {"config_groups": {}}
        for group in config["config_groups"].values():  # what went into a weight is in the one that was stored
            group["apply"] = [entry for entry in group["apply"] if not entry["location"].startswith("weight_")]
        apply_transform_config(model, TransformConfig.model_validate(config))
        _leave_queries(model)
    return model


def _leave_queries(model: Any) -> None:
    """compressed-tensors 0.20 takes the numbers of a cache for those of queries too, once it has hooked attention to
    transform them, and then misses their scale."""
    for attention in [module for module in model.modules() if hasattr(module, "impl")]:
        attention.impl.register_forward_pre_hook(lambda _, given: setattr(given[0], "quantization_enabled", False))
        attention.impl.register_forward_hook(lambda _, given, __: setattr(given[0], "quantization_enabled", True))


def assert_nothing_of_ours() -> None:
    """No module of this project is imported in this process, but what a `.pth` makes Python import when it starts."""
    ours = sorted(name for name in sys.modules if name.startswith("gs_") and not name.startswith("gs_compat"))
    assert not ours, f"imported: {', '.join(ours)}"
