"""Quantizes a folder, whole and block by block, in whatever framework an adapter speaks.

    python mindspore_parity.py ADAPTER FOLDER WORK [--live]

WORK holds `jobs.json`: {"recipes": {name: recipe}, "blocks": {algorithm: scheme}}, `tokens.npy` (samples, length) and
`windows.npy` to evaluate on. Each recipe's folder becomes WORK/ADAPTER/name. Every block of the float model is treated
on its own by each of the algorithms, the inputs taken from WORK/inputs, which the first that comes writes: codes and
scales are in WORK/ADAPTER/algorithm.npz. With --live, a MindFormers network is made of the folder, and only the recipes
carried out.

The last line of stdout is {"perplexity": {name: p, "float": p}}.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from gs_core import calibration, quantize
from gs_core.api import open_source
from gs_core.arrays import RawTensor, astype, from_raw, to_numpy, to_raw
from gs_core.evaluation import evaluate
from gs_core.interfaces import Batch, Block
from gs_core.planning import load_algorithm
from gs_core.storage import Checkpoint
from gs_core.testing.treatment import treat
from gs_schemas import QuantizationScheme, Recipe


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("adapter")
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--live", action="store_true")
    given = parser.parse_args()
    jobs = json.loads((given.work / "jobs.json").read_text())
    tokens, windows = (np.load(given.work / name) for name in ("tokens.npy", "windows.npy"))
    out = given.work / (f"{given.adapter}-live" if given.live else given.adapter)
    source = network_of(given.folder) if given.live else given.folder
    perplexity = {}
    for name, recipe in jobs["recipes"].items():
        sizes = {"samples": len(tokens), "seq_len": tokens.shape[1]}
        quantize(source, Recipe.parse(recipe), out / name, calibration=tokens, adapter=given.adapter, **sizes)
    if not given.live:
        folders = {"float": given.folder} | {name: out / name for name in jobs["recipes"]}
        for name, folder in folders.items():
            found = evaluate(folder, windows, windows=len(windows), seq_len=windows.shape[1], adapter=given.adapter)
            perplexity[name] = found.perplexity
        for name, scheme in jobs["blocks"].items():
            asked = QuantizationScheme.model_validate(scheme)
            blocks = treated(given.adapter, given.folder, given.work / "inputs", tokens, name, asked)
            np.savez(out / f"{name}.npz", **blocks)
    print(json.dumps({"perplexity": perplexity}))


def network_of(folder: Path) -> Any:
    """A MindFormers Llama with the folder's weights in their own dtype."""
    import mindspore

    mindspore.set_context(pynative_synchronize=True)
    from mindformers.models.llama import LlamaConfig, LlamaForCausalLM

    from gs_mindformers.build import PLAIN
    from gs_mindformers.config import read_config
    from gs_mindformers.names import to_mindformers
    from gs_mindformers.tensors import to_parameter

    sizes = read_config(folder).arguments
    dtypes = dict.fromkeys(("compute_dtype", "param_init_type", "layernorm_compute_type"), "bfloat16")
    network = LlamaForCausalLM(LlamaConfig(**sizes, seq_length=1024, pad_token_id=-1, **PLAIN, **dtypes))
    named = {to_mindformers(name): tensor for name, tensor in Checkpoint(folder).tensors.items()}
    values = {name: to_parameter(name, from_raw(tensor.read())) for name, tensor in named.items()}
    missing, left = mindspore.load_param_into_net(network, values)
    assert not missing and not left, (missing, left)
    return network


def treated(
    adapter: str, folder: Path, inputs: Path, tokens: np.ndarray, algorithm: str, scheme: QuantizationScheme
) -> dict[str, np.ndarray]:
    """Codes and scales of every layer, each block quantized on what the float model gives it."""
    model, found = open_source(folder, adapter=adapter).model, {}
    batches: list[Batch] = [(batch, None) for batch in calibration.batches(tokens)]
    for index in range(len(model.blocks)):
        block = model.block(index, batches[0])
        following = after(block, batches, inputs / str(index))
        for layer, tensor in treat(load_algorithm(algorithm, {}), block, scheme, batches).tensors.items():
            found[f"{layer}.codes"] = to_numpy(tensor.codes)
            found[f"{layer}.scale"] = to_numpy(astype(tensor.scale, "float32"))
        batches = following
    return found


def after(block: Block, batches: list[Batch], folder: Path) -> list[Batch]:
    """What the next block is given: as another framework computed it, where one has."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for number, batch in enumerate(batches):
            outputs = {name: to_raw(array) for name, array in block.run(*batch).items()}
            np.savez(folder / f"{number}.npz", **{name: from_raw(raw) for name, raw in outputs.items()})
    found = [np.load(folder / f"{number}.npz") for number in range(len(batches))]
    states: list[dict[str, RawTensor]] = [{name: to_raw(arrays[name]) for name in arrays} for arrays in found]
    return [(tokens, state) for (tokens, _), state in zip(batches, states, strict=True)]


if __name__ == "__main__":
    main()
