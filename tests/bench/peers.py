"""The tools beside which this project stands, each in an environment of its own (tests/lanes)."""

import sys
from dataclasses import dataclass
from pathlib import Path

from measuring import HERE, Run, ours, run
from rows import OURS

sys.path.insert(0, str(HERE.parent / "lanes"))
from environments import EnvironmentFailed, python_of


@dataclass(frozen=True)
class Peer:
    """``lane``: the name of its environment and of its script here. ``opener``: the script that opens what it writes,
    where only that environment can; compressed-tensors folders are opened by ours."""

    lane: str
    opener: Path | None = None


OPENER = HERE.parent / "lanes" / "transformers_divergence.py"
PEERS = {
    "llm-compressor": Peer("llmcompressor"),
    "GPTQModel": Peer("gptqmodel", OPENER),
    "AutoRound": Peer("autoround"),
    "AMD Quark": Peer("quark", HERE / "divergence_quark.py"),
    "ModelOpt": Peer("modelopt"),
}
TOOLS = (OURS, *PEERS)


def quantize(tool: str, model: Path, recipe: str, out: Path, tokens: Path, group_size: int = 128) -> Run:
    """One quantization, in a process of its own. group_size: of weights of three and four bits."""
    given = (model, recipe, out, tokens, "--group-size", str(group_size))
    if tool == OURS:
        return ours("quantize_ours.py", *given)
    return _in_environment(tool, HERE / f"quantize_{PEERS[tool].lane}.py", *given)


def divergence(tool: str, folder: Path, model: Path, windows: Path) -> Run:
    """Divergence from ``model`` and perplexity of the folder that ``tool`` wrote, in float32."""
    given = (folder, model, windows)
    if tool != OURS and (opener := PEERS[tool].opener):
        return _in_environment(tool, opener, *given)
    if not any(folder.glob("model*.safetensors")):  # Ascend's names: no transformers opens them
        return ours("divergence_ours.py", *given)
    return run([sys.executable, OPENER, *given, "--transforms"])


def _in_environment(tool: str, script: Path, *arguments: str | Path) -> Run:
    try:
        python = python_of(PEERS[tool].lane)
    except EnvironmentFailed as error:
        return Run({}, f"no environment: {str(error).splitlines()[-1]}")
    return run([python, script, *arguments])
