"""Writes a smaller model: the first blocks of a model, and the tensors outside its blocks."""

import json
import re
import shutil
from pathlib import Path


def first_blocks(source: Path, count: int, folder: Path) -> Path:
    """The first ``count`` decoder blocks of ``source``, written into ``folder`` as a model of its own."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = count
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:count]
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    tensors = {}
    for file in source.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                number = re.search(r"\.layers\.(\d+)\.", name)
                if number is None or int(number[1]) < count:
                    tensors[name] = opened.get_tensor(name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
