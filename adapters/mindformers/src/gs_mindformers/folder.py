"""Opening a checkpoint folder. A recipe that needs no data goes from file to file: MindSpore is not even imported."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gs_core import CheckpointError, LayerInfo, Site
from gs_core.arrays import FLOAT_DTYPES
from gs_core.storage import Checkpoint
from gs_mindformers.config import Config, read_config, why_none
from gs_mindformers.found import Layers, Place
from gs_mindformers.model import Facts, MFModel
from gs_mindformers.names import BLOCKS, CONCATENATED, TOGETHER, to_huggingface, to_mindformers
from gs_mindformers.weights import Entry, Weights

if TYPE_CHECKING:
    from gs_mindformers.network import Running

NUMBERED = re.compile(r"(?:^|.*\.)(?:layers|blocks|h)\.(\d+)\.")


def why_not(folder: Path) -> str | None:
    """Why a folder cannot be opened here, or ``None``. Reads no weights."""
    if not any([*folder.glob("*.ckpt"), *folder.glob("*.safetensors")]):
        return "no *.ckpt or *.safetensors file"
    return why_none(folder)


def open_folder(folder: Path, checkpoint: Checkpoint | None) -> MFModel:
    """A folder of a Llama, or of anything else whose blocks are numbered, the latter for recipes without data."""
    config = read_config(folder)
    stored = checkpoint or Checkpoint(folder)
    weights = Weights([Entry(name, tensor, to_mindformers(name)) for name, tensor in stored.tensors.items()])
    found = _llama(config, weights) if config.arguments is not None else _numbered(weights)
    if not found.places:
        raise CheckpointError(f"{folder}: found no layer to quantize; its blocks are not numbered 'layers.0.'")
    blocks = [f"{BLOCKS}{number}" for number in range(len(found.sites))]
    running = _builder(folder, config, weights, found, len(blocks))
    facts = Facts(config.content, _vocabulary(config, weights), config.length)
    return MFModel(str(folder), facts, weights, blocks, _block_of, found, running, folder)


def _block_of(parameter: str) -> int | None:
    match = NUMBERED.match(parameter)
    return int(match.group(1)) if match else None


def _vocabulary(config: Config, weights: Weights) -> int:
    known = (config.arguments or config.content).get("vocab_size")
    if known:
        return int(known)
    matrices = [e.tensor.shape for e in weights if _block_of(e.parameter) is None and len(e.tensor.shape) == 2]
    return int(max(matrices, key=lambda shape: shape[0], default=(0, 0))[0])


# --- which tensors are layers --------------------------------------------------------------------------------


def _llama(config: Config, weights: Weights) -> Layers:
    """Raises ``CheckpointError`` for a layer that the configuration has and the checkpoint has not."""
    assert config.arguments is not None
    count = config.arguments.get("num_layers")
    if not isinstance(count, int) or count < 1:
        raise CheckpointError("the configuration does not say how many layers there are")
    found = Layers(sites=[{} for _ in range(count)], kept=_outside(weights))
    groups = CONCATENATED if f"{BLOCKS}0.attention.w_qkv.weight" in weights.by_parameter else TOGETHER
    for number in range(count):
        for group in groups:
            _add_site(found, weights, number, [f"{BLOCKS}{number}.{leaf}" for leaf in group])
    return found


def _numbered(weights: Weights) -> Layers:
    """Every matrix of a numbered block but embeddings; which share an input is not known."""
    here = {}
    kept = _outside(weights)
    for entry in weights:
        number, shape = _block_of(entry.parameter), entry.tensor.shape
        if number is None or entry.tensor.dtype not in FLOAT_DTYPES or not entry.parameter.endswith(".weight"):
            continue
        name = entry.parameter.removesuffix(".weight")
        if len(shape) == 2 and "embed" not in name:
            here[name] = number
        elif len(shape) > 1:
            kept[name] = "experts stored as one tensor: open the network itself" if len(shape) == 3 else "an embedding"
    found = Layers(sites=[{} for _ in range(max(here.values(), default=-1) + 1)], kept=kept)
    for name in sorted(here, key=lambda name: here[name]):
        _add_site(found, weights, here[name], [name])
    return found


def _outside(weights: Weights) -> dict[str, str]:
    matrices = [e for e in weights if _block_of(e.parameter) is None and len(e.tensor.shape) > 1]
    return {e.source.removesuffix(".weight"): "outside the decoder blocks" for e in matrices}


def _add_site(found: Layers, weights: Weights, block: int, modules: list[str]) -> None:
    missing = [f"{module}.weight" for module in modules if f"{module}.weight" not in weights.by_parameter]
    if missing:
        raise CheckpointError(
            f"there is neither a '{missing[0]}' nor a '{to_huggingface(missing[0])}'; the checkpoint is incomplete"
        )
    entries = [weights.at(f"{module}.weight", None) for module in modules]
    names = [entry.source.removesuffix(".weight") for entry in entries]
    site = f"{names[0]}.input"
    for module, name, entry in zip(modules, names, entries, strict=True):
        rows, columns = entry.tensor.shape
        alias = module if module != name else ""
        found.infos.append(LayerInfo(name, block, (rows, columns), site, entry.tensor.dtype, alias))
        found.places[name] = Place(entry.parameter, None, False)
        found.site_of[entry.parameter, None] = site
    found.fed[site] = [found.places[name] for name in names]
    found.sites[block][site] = Site(site, entries[0].tensor.shape[1], tuple(names))


# --- the network ---------------------------------------------------------------------------------------------


def _builder(folder: Path, config: Config, weights: Weights, found: Layers, blocks: int) -> "Callable[[], Running]":
    """What builds the network when it is first asked for, and checks that its layers are those of the table."""
    built: list[Running] = []

    def running() -> "Running":
        if not built:
            if config.arguments is None:
                kind = config.content.get("model_type") or config.content.get("type")
                raise CheckpointError(
                    f"{folder}: no network can be built of a '{kind}' here, and this recipe needs to run one; "
                    "load the checkpoint into the network yourself and quantize that"
                )
            from gs_mindformers.build import build

            built.append(build(config, weights, found, blocks))
        return built[0]

    return running
