"""Files of Golden Stick's and msModelSlim's layouts, loaded by those that they are for: networks of MindFormers'
``Linear`` that mindspore_gs 1.4.1 itself prepared (DEPLOY), and MindFormers 2.1's inference network of Qwen3."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gs_core import CacheInfo, CacheNumbers, QuantizationArgs, QuantizationScheme, StaticInput, numerics
from gs_core.arrays import astype, from_raw
from gs_core.interfaces import Finished, Output, Site
from gs_core.storage import Checkpoint, read_header
from gs_golden_stick import Ascend, GoldenStick, GoldenStickCkpt, GoldenStickNetwork

pytestmark = pytest.mark.lane

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def mindspore() -> Any:
    """``(script, result, *arguments)``: what the script writes into ``result``, run in MindSpore's environment."""
    command = [sys.executable, HERE / "environments.py", "mindspore"]
    python = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def run(script: str, result: Path, *arguments: Any) -> Any:
        command = [str(part) for part in (python, HERE / script, result, *arguments)]
        # MindFormers writes its logs into the working directory.
        ran = subprocess.run(command, cwd=result.parent, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-3000:]
        return json.loads(result.read_text())

    return run


# --- networks that mindspore_gs deployed ----------------------------------------------------------------------

TOKEN = QuantizationArgs(format="int8", granularity="token", dynamic=True)
TENSOR = QuantizationArgs(format="int8", granularity="tensor", symmetric=False)
W8 = QuantizationArgs(format="int8")
W4 = QuantizationArgs(format="int4")
W4_GROUP = QuantizationArgs(format="int4", granularity="group", group_size=64)
DEPLOYED = {
    "rtn8": (QuantizationScheme(weights=W8), None),
    "rtn4": (QuantizationScheme(weights=W4), None),
    "rtn4g": (QuantizationScheme(weights=W4_GROUP), None),
    "sq": (QuantizationScheme(weights=W8, inputs=TENSOR), None),
    "a8w8": (QuantizationScheme(weights=W8, inputs=TENSOR), "none"),
    "a8dynw8": (QuantizationScheme(weights=W8, inputs=TOKEN), None),
    "awq": (QuantizationScheme(weights=W4_GROUP), "awq"),
    "a8w4": (QuantizationScheme(weights=W4_GROUP, inputs=TOKEN), None),
    "kv": (None, None),
}
FILES = [
    f"{case}-{dtype}.{extension}"
    for case in DEPLOYED
    for dtype in ("float16", "bfloat16")
    for extension in ("safetensors", "ckpt")
]


def tensors(plugin: Any, scheme: QuantizationScheme | None, dtype: str) -> list[tuple[str, Any]]:
    """What ``mindspore_deployed.py``'s network has: two layers, one bias, and a cache or none."""
    random, found = np.random.default_rng(0), []
    for name, rows in (("layers.0.wq", 32), ("layers.0.w2", 64)):
        weight = random.standard_normal((rows, 128)).astype(np.float32)
        if scheme is None:
            found.append((f"{name}.weight", astype(weight, dtype)))
            continue
        inputs = StaticInput(astype(np.array([0.03]), dtype), np.array([5], np.float32))
        tensor = numerics.quantize_weight(weight, scheme.weights, dtype)
        arrays = plugin.parameters(tensor, inputs if scheme.inputs is TENSOR else None, plugin.layout(scheme))
        found += [(f"{name}.{suffix}", array) for suffix, array in arrays.items()]
    found.append(("layers.0.wq.bias", astype(np.ones(32), dtype)))
    if scheme is None:
        sites = tuple(Site(kind, 32, (), kind, 2, dtype) for kind in ("key", "value"))
        static = {site.kind: StaticInput(astype(np.full(32, 0.05), dtype)) for site in sites}
        cache = CacheInfo("layers.0.attention", 0, sites)
        found += plugin.pack_cache(cache, CacheNumbers(W8, static)).items()
    return found


@pytest.fixture(scope="module")
def deployed(mindspore, tmp_path_factory):
    """What ``mindspore_deployed.py`` says of every file."""
    folder = tmp_path_factory.mktemp("deployed")
    (folder / "files").mkdir()
    for name in FILES:
        case, dtype = Path(name).stem.split("-")
        scheme, suppression = DEPLOYED[case]
        plugin = (GoldenStickCkpt if name.endswith(".ckpt") else GoldenStickNetwork)(suppression)
        (written,) = plugin.export(output=Output(folder, 0, 1, tensors(plugin, scheme, dtype)))
        (folder / written).rename(folder / "files" / name)
    return mindspore("mindspore_deployed.py", folder / "result.json", folder / "files")


@pytest.mark.parametrize("file", FILES)
def test_a_network_takes_the_file_and_nothing_is_left_over(deployed, file):
    found = deployed[file]
    assert found["file"] == found["network"], "names, dtypes and shapes"
    assert (found["missing"], found["left"]) == ([], [])


# --- MindFormers' inference network --------------------------------------------------------------------------

HIDDEN, INTERMEDIATE, VOCABULARY, HEAD = 64, 128, 96, 16
CONFIG = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "tie_word_embeddings": False,
}
BLOCK = "model.layers.0."
LAYERS = {
    "self_attn.q_proj": (4 * HEAD, HIDDEN),
    "self_attn.k_proj": (2 * HEAD, HIDDEN),
    "self_attn.v_proj": (2 * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, 4 * HEAD),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
FLOATS = {
    "model.embed_tokens": (VOCABULARY, HIDDEN),
    "lm_head": (VOCABULARY, HIDDEN),
    "model.norm": (HIDDEN,),
    f"{BLOCK}input_layernorm": (HIDDEN,),
    f"{BLOCK}post_attention_layernorm": (HIDDEN,),
    f"{BLOCK}self_attn.q_norm": (HEAD,),
    f"{BLOCK}self_attn.k_norm": (HEAD,),
}
STATIC, DYNAMIC = (QuantizationScheme(weights=W8, inputs=inputs) for inputs in (TENSOR, TOKEN))


def write(plugin: Any, scheme: QuantizationScheme, dtype: str, folder: Path) -> None:
    random, tensors = np.random.default_rng(0), []
    for name, shape in LAYERS.items():
        tensor = numerics.quantize_weight(random.standard_normal(shape).astype("f4"), scheme.weights, dtype)
        inputs = StaticInput(astype(np.array([0.03]), dtype), np.array([5.0])) if scheme is STATIC else None
        arrays = plugin.parameters(tensor, inputs, plugin.layout(scheme))
        tensors += [(f"{BLOCK}{name}.{suffix}", array) for suffix, array in arrays.items()]
    tensors += [(f"{name}.weight", random.standard_normal(shape).astype("f2")) for name, shape in FLOATS.items()]
    (file,) = plugin.export(output=Output(folder, 0, 1, tensors))
    shards = {file: {name: t.nbytes for name, t in read_header(folder / file).items()}}
    schemes = dict.fromkeys((f"{BLOCK}{name}" for name in LAYERS), scheme)
    plugin.export(output=Output(folder, 1, 1, final=Finished(CONFIG, schemes, [], [], shards, {})))


FOLDERS = {
    "static": (GoldenStick(), STATIC, "float16"),
    "static-bfloat16": (GoldenStick(), STATIC, "bfloat16"),
    "dynamic": (GoldenStick(), DYNAMIC, "float16"),
    # Its int64 scales and its scales of (out, 1) are for vLLM-Ascend.
    "ascend-static-bfloat16": (Ascend(), STATIC, "bfloat16"),
}
FUSED = {
    "self_attention.linear_qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention.linear_proj": ["self_attn.o_proj"],
    "mlp.linear_fc1": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.linear_fc2": ["mlp.down_proj"],
}


@pytest.fixture(scope="module")
def inference(mindspore, tmp_path_factory):
    """The folders, and what ``mindspore_inference.py`` says of each."""
    root = tmp_path_factory.mktemp("inference")
    arguments = []
    for name, (plugin, scheme, dtype) in FOLDERS.items():
        (root / name).mkdir()
        write(plugin, scheme, dtype, root / name)
        arguments.append(f"{plugin.quant_method}={root / name}")
    return root, mindspore("mindspore_inference.py", root / "result.json", *arguments)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_inference_network_has_every_parameter_of_the_folder(inference, name):
    root, results = inference
    found, stored = results[name], Checkpoint(root / name)
    # msModelSlim may write a shift of the activations, which is zero where it is missing.
    assert [parameter for parameter in found["missing"] if not parameter.endswith(".beta")] == []
    parts = {"weight": "weight", "quant_bias": "quant_bias", "deq_scale": "deq_scale"}
    parts = parts if FOLDERS[name][1] is STATIC else {"weight": "weight", "weight_scale": "w_scale"}
    for cell, layers in FUSED.items():
        for theirs, ours in parts.items():
            dtype, _, total = found["parameters"][f"decoder.layers.0.{cell}.{ours}"]
            arrays = [from_raw(stored[f"{BLOCK}{layer}.{theirs}"].read()) for layer in layers]
            assert dtype == {"weight": "Int8", "quant_bias": "Int32"}.get(ours, "Float32")
            assert total == pytest.approx(sum(a.astype(np.float64).sum() for a in arrays), rel=1e-6), (cell, ours)
