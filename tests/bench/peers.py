"""The tools beside which this project stands, each in an environment of its own (tests/lanes)."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from measuring import HERE, Run, ours, run
from rows import OURS

sys.path.insert(0, str(HERE.parent / "lanes"))
from environments import EnvironmentFailed, python_of


@dataclass(frozen=True)
class Peer:
    """``lane``: the name of its environment and of its script here. ``opens``: whether only that environment opens what
    it writes; compressed-tensors folders are opened by ours."""

    lane: str
    opens: bool = False


PEERS = {
    "llm-compressor": Peer("llmcompressor"),
    "GPTQModel": Peer("gptqmodel", opens=True),
    "AutoRound": Peer("autoround"),
    "AMD Quark": Peer("quark", opens=True),
    "ModelOpt": Peer("modelopt", opens=True),
}
TOOLS = (OURS, *PEERS)


def quantize(tool: str, model: Path, recipe: str, out: Path, tokens: Path) -> Run:
    """One quantization, in a process of its own."""
    if tool == OURS:
        return ours("quantize_ours.py", model, recipe, out, tokens)
    return _in_environment(tool, HERE / f"quantize_{PEERS[tool].lane}.py", model, recipe, out, tokens)


def perplexity(tool: str, folder: Path, windows: Path) -> Run:
    """Of what ``tool`` wrote, opened by transformers in float32; by ours where transformers cannot."""
    script = HERE.parent / "lanes" / "transformers_perplexity.py"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    method = config.get("quantization_config", {}).get("quant_method", "compressed-tensors")
    if tool == OURS and method != "compressed-tensors":
        return ours("perplexity_ours.py", folder, windows)
    if tool != OURS and PEERS[tool].opens:
        return _in_environment(tool, script, folder, windows)
    return run([sys.executable, script, folder, windows, "--transforms"])


def _in_environment(tool: str, script: Path, *arguments: str | Path) -> Run:
    try:
        python = python_of(PEERS[tool].lane)
    except EnvironmentFailed as error:
        return Run({}, f"no environment: {str(error).splitlines()[-1]}")
    return run([python, script, *arguments])
