"""From a folder or a live module to a ``Model``."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from gs_core import CheckpointError, PlanError
from gs_core.errors import reason
from gs_core.storage import SINGLE, Checkpoint, write_safetensors
from gs_hf.config_sizes import check_sizes
from gs_hf.construct import from_config, parameters_on_meta
from gs_hf.model import HFModel
from gs_hf.trust import model_class, refusal, without_hub_kernels


def open_folder(
    folder: Path, device: str, checkpoint: Checkpoint | None, trust_remote_code: bool = False, name: str = ""
) -> HFModel:
    """Build the module from ``config.json`` on the meta device. Raises ``CheckpointError`` or ``PlanError``.

    name: of the model in messages; the folder, if empty.
    """
    name = name or str(folder)
    _check_device(device)
    config = read_config(folder)
    checkpoint = checkpoint or Checkpoint(folder)
    check_sizes(config, checkpoint)
    try:
        configuration = auto_config(folder, trust_remote_code)
        if getattr(configuration, "is_encoder_decoder", False):
            kind = configuration.model_type
            raise PlanError([f"{name}: an encoder-decoder model ({kind}); only decoder models are supported"])
        custom = model_class(configuration, folder) if trust_remote_code else None
        module = from_config(configuration, custom)
    except PlanError:
        raise
    except Exception as error:  # transformers' own checks of a stranger's file may raise anything
        why = None if trust_remote_code else refusal(folder, "config.json")
        why = why or f"{name}: transformers cannot build this model: {reason(error)}"
        raise CheckpointError(why) from error
    return HFModel(module, checkpoint, folder, config, device, name, trust_remote_code)


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter when torch was built without that device
        raise PlanError([f"device '{device}' cannot be used: {str(error).splitlines()[0]}"]) from None


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
        return config
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None


def auto_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The configuration object, without the quantization entry: weights arrive dequantized."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return without_hub_kernels(config)


def open_module(live: torch.nn.Module, device: str, trust_remote_code: bool = False) -> HFModel:
    """A live module: its weights are written out first, then treated as any checkpoint's.

    The copy makes a live model and its saved folder the same thing, name for name and byte for byte.
    """
    spill = tempfile.TemporaryDirectory(prefix="golden-stick-")
    folder = Path(spill.name)
    if hasattr(live, "save_pretrained"):
        live.save_pretrained(folder)
        model = open_folder(folder, device, None, trust_remote_code, type(live).__name__)
    else:
        state = {name: value.detach() for name, value in live.state_dict().items()}
        write_safetensors(folder / SINGLE, state.items())
        module = _structure(live)
        model = HFModel(module, Checkpoint(folder), folder, {}, device, type(live).__name__)
    model.copied = spill
    model.tokenizer_source = getattr(live, "name_or_path", None)
    return model


def _structure(live: torch.nn.Module) -> torch.nn.Module:
    """The same module with every parameter on the meta device, sharing buffers with the live one."""
    import copy

    memo: dict[int, Any] = {}
    for parameter in live.parameters():
        meta = torch.nn.Parameter(torch.empty_like(parameter, device="meta", dtype=torch.float32), requires_grad=False)
        memo[id(parameter)] = meta if parameter.is_floating_point() else parameter
    with parameters_on_meta():
        return copy.deepcopy(live, memo).eval()
