# ruff: noqa: E501 - as the pages print them
"""Every configuration that Golden Stick's and vLLM-MindSpore's pages print, run as they print it.

Names that a page uses without importing them are put there first: `qint4x2`, `none`, `msdtype`, `ms`, `OrderedDict`.
"""

import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.lane, pytest.mark.usefixtures("mindspore")]

FORGOTTEN = """
from collections import OrderedDict
import mindspore as ms
from mindspore import dtype as msdtype
qint4x2 = msdtype.qint4x2
none = None
"""
IMPORTS = """
from mindspore import dtype as msdtype
from mindspore_gs.ptq import PTQConfig, OutliersSuppressionType, PrecisionRecovery, QuantGranularity, AWQConfig
from mindspore_gs.ptq.ptq_config import GPTQQuantConfig
"""
CONFIGURATIONS = {
    "w8": """
ptq_config = PTQConfig(weight_quant_dtype=msdtype.int8,  act_quant_dtype=None,  kvcache_quant_dtype=None,
                        outliers_suppression=OutliersSuppressionType.NONE)
""",
    "c8": """
ptq_config = PTQConfig(weight_quant_dtype=None, act_quant_dtype=None, kvcache_quant_dtype=msdtype.int8,
                        outliers_suppression=OutliersSuppressionType.NONE)
""",
    "smooth w8a8c8": """
ptq_config = PTQConfig(weight_quant_dtype=msdtype.int8, act_quant_dtype=msdtype.int8, kvcache_quant_dtype=msdtype.int8,
                        outliers_suppression=OutliersSuppressionType.SMOOTH)
""",
    "gptq per channel": """
algorithm_config = GPTQQuantConfig(desc_act=False, static_groups=False, damp_percent=0.1, block_size=128)
ptq_config = PTQConfig(weight_quant_dtype=qint4x2, act_quant_dtype=None, kvcache_quant_dtype=None,
                       outliers_suppression=OutliersSuppressionType.NONE, algo_args=algorithm_config,
                       weight_quant_granularity=QuantGranularity.PER_CHANNEL, group_size=0,
                       precision_recovery = PrecisionRecovery.GPTQ)
""",
    "gptq per group": """
algorithm_config = GPTQQuantConfig(desc_act=False, static_groups=False, damp_percent=0.1, block_size=128)
ptq_config = PTQConfig(weight_quant_dtype=qint4x2, act_quant_dtype=None, kvcache_quant_dtype=None,
                       outliers_suppression=OutliersSuppressionType.NONE, algo_args=algorithm_config,
                       weight_quant_granularity=QuantGranularity.PER_GROUP, group_size=128,
                       precision_recovery = PrecisionRecovery.GPTQ)
""",
    "awq": """
ptq_config = PTQConfig(weight_quant_dtype=msdtype.qint4x2, act_quant_dtype=none, kvcache_quant_dtype=none,
                       outliers_suppression=OutliersSuppressionType.AWQ)
""",
    "awq per channel": """
ptq_config = PTQConfig(weight_quant_dtype=msdtype.qint4x2, act_quant_dtype=none, kvcache_quant_dtype=none,
                       outliers_suppression=OutliersSuppressionType.AWQ,
                       weight_quant_granularity=QuantGranularity.PER_CHANNEL, group_size=0)
""",
    "awq per group": """
ptq_config = PTQConfig(weight_quant_dtype=msdtype.qint4x2, act_quant_dtype=none, kvcache_quant_dtype=none,
                       outliers_suppression=OutliersSuppressionType.AWQ,
                       weight_quant_granularity=QuantGranularity.PER_GROUP, group_size=128)
""",
    "awq with options": """
awq_config = AWQConfig(duo_scaling=False, smooth_alpha=[0.5, 0.7, 0.9], weight_clip_ratio=[0.90, 0.95, 0.99])
ptq_config = PTQConfig(weight_quant_dtype=msdtype.qint4x2, act_quant_dtype=none, kvcache_quant_dtype=none,
                       outliers_suppression=OutliersSuppressionType.AWQ,
                       weight_quant_granularity=QuantGranularity.PER_GROUP, group_size=128, algo_args=awq_config)
""",
    "w8c8": """
ptq_config = PTQConfig(weight_quant_dtype=msdtype.int8, act_quant_dtype=None, kvcache_quant_dtype=msdtype.int8,
                        outliers_suppression=OutliersSuppressionType.NONE)
""",
    "w8a8c8": """
ptq_config = PTQConfig(weight_quant_dtype=msdtype.int8, act_quant_dtype=msdtype.int8, kvcache_quant_dtype=msdtype.int8,
                        outliers_suppression=OutliersSuppressionType.NONE)
""",
    "smooth w8a8": """
ptq_config = PTQConfig(weight_quant_dtype=msdtype.int8, act_quant_dtype=msdtype.int8, kvcache_quant_dtype=None,
                    outliers_suppression=OutliersSuppressionType.SMOOTH)
""",
}
NETWORK = """
from mindspore_gs.ptq.network_helpers.mf_net_helpers import MFParallelLlama2Helper

config_path = '/path/to/workspace/predict_llama2_7b.yaml'
helper = MFParallelLlama2Helper(config_path)
network = helper.create_network()
"""
DATASET = """
from mindspore_gs.datasets import get_datasets

ds_path = '/path/to/workspace/squad/train-v1.1.json'
bs_ = helper.get_spec('batch_size')
seq_ = helper.get_spec('seq_length')
max_decode_length = helper.get_spec('max_decode_length')
ignore_token_id = helper.get_spec('ignore_token_id')
tokenizer = helper.create_tokenizer()
ds = get_datasets('squad1.1', ds_path, "train", bs_, seq_, max_decode_length, tokenizer, ignore_token_id, 1,
                  False, n_samples=200)
"""
ALGORITHM = """
from mindspore_gs.ptq.ptq import PTQ
from mindspore_gs.common import BackendTarget
from mindspore_gs.ptq import PTQMode, PTQConfig, OutliersSuppressionType

ptq_config = PTQConfig(mode=PTQMode.QUANTIZE, backend=BackendTarget.ASCEND, opname_blacklist=["w2", "lm_head"],
                       weight_quant_dtype=msdtype.int8, act_quant_dtype=msdtype.int8, kvcache_quant_dtype=msdtype.int8)
ptq = PTQ(config=ptq_config)
"""
SAVE = """
import mindspore as ms

ptq.apply(network, helper, ds)
ptq.convert(network)
ms.save_checkpoint(network.parameters_dict(), "a8w8c8.ckpt",
                   choice_func=lambda x: "key_cache" not in x and "value_cache" not in x and "float_weight" not in x)
print("quant checkpoint saved at 'a8w8c8.ckpt'", flush=True)
"""
DEPLOY = """
import numpy as np
import mindspore as ms
from mindformers import MindFormerConfig, AutoModel
from mindspore_gs.ptq.network_helpers.mf_net_helpers import MFParallelLlama2Helper
from mindspore_gs.datasets import get_datasets
from mindspore_gs.common import logger
from mindspore_gs.ptq.ptq import PTQ
from mindspore_gs.common import BackendTarget
from mindspore_gs.ptq import PTQMode, PTQConfig, OutliersSuppressionType


config_path = '/path/to/workspace/predict_llama2_7b.yaml'
mf_config = MindFormerConfig(config_path)

network = AutoModel.from_config(mf_config, download_checkpoint=False)
network.set_train(False)
network.phase = 'predict'

ptq_config = PTQConfig(mode=PTQMode.DEPLOY, backend=BackendTarget.ASCEND, opname_blacklist=["w2", "lm_head"],
                       weight_quant_dtype=ms.dtype.int8, act_quant_dtype=ms.dtype.int8, kvcache_quant_dtype=ms.dtype.int8)
ptq = PTQ(config=ptq_config)
ptq.apply(network)
ptq.convert(network)

ms.load_checkpoint(mf_config.load_checkpoint, network)
"""
QWEN3 = """
from mindspore import dtype as msdtype
from mindspore_gs.ptq import PTQ
from mindspore_gs.common import BackendTarget
from mindspore_gs.ptq import PTQConfig, PTQMode, OutliersSuppressionType, QuantGranularity, PrecisionRecovery
cfg = PTQConfig(mode=quant_mode, backend=BackendTarget.ASCEND, weight_quant_dtype=msdtype.int8,
                act_quant_dtype=msdtype.int8, outliers_suppression=OutliersSuppressionType.SMOOTH,
                opname_blacklist=['lm_head'])
w2_config = PTQConfig(mode=quant_mode, backend=BackendTarget.ASCEND, weight_quant_dtype=msdtype.int8,
                      act_quant_dtype=msdtype.int8,
                      outliers_suppression=OutliersSuppressionType.NONE,
                      precision_recovery=PrecisionRecovery.NONE,
                      act_quant_granularity=QuantGranularity.PER_TOKEN,
                      weight_quant_granularity=QuantGranularity.PER_CHANNEL)
layer_policies = OrderedDict({r'.*\\.w2.*': w2_config})
ptq = PTQ(config=cfg, layer_policies=layer_policies)
from research.qwen3.qwen3_transformers import Qwen3ParallelTransformerLayer
ptq.decoder_layer_types.append(Qwen3ParallelTransformerLayer)
ptq.apply(network, ds)
ptq.convert(network)
ms.save_checkpoint(network.parameters_dict(), "Qwen3-8B-A8W8", format="safetensors",
                   choice_func=lambda x: "key_cache" not in x and "value_cache" not in x and "float_weight" not in x)
"""


@pytest.fixture
def run(workspace):
    """Run pieces of a script one after another, in the workspace."""
    names: dict = {}

    def run(*pieces: str) -> dict:
        for piece in pieces:
            exec(piece.replace("/path/to/workspace", str(workspace)), names)
        return names

    run(FORGOTTEN)
    return run


@pytest.fixture
def research(tmp_path, monkeypatch):
    """What is in MindFormers' repository and in no wheel, as far as the pages import it."""
    from mindformers.models.llama.llama_transformer import LLamaDecodeLayer

    for name in ("research", "research.qwen3", "research.qwen3.qwen3_transformers"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setattr(
        sys.modules["research.qwen3.qwen3_transformers"],
        "Qwen3ParallelTransformerLayer",
        LLamaDecodeLayer,
        raising=False,
    )


IDS = np.random.default_rng(0).integers(3, 2000, (1, 64)).astype(np.int32)
PROMPT, END = 58, 62


def logits(network) -> np.ndarray:
    """Those of a network without a cache: ``(64, vocabulary)``."""
    import mindspore as ms

    return first(network(ms.Tensor(IDS))).reshape(64, -1)


def first(output) -> np.ndarray:
    """The logits of what a network returns: alone where MindFormers has been told to predict, else with more."""
    return (output[0] if isinstance(output, tuple) else output).asnumpy().astype(np.float64)


def decoded(network) -> np.ndarray:
    """Those of one that caches, which is given a prompt at once and then token by token: ``(4, vocabulary)``."""
    import mindspore as ms

    def call(ids: list[int], slots: list[int], length: int) -> np.ndarray:
        found = network(
            ms.Tensor(np.array([ids], np.int32)),
            batch_valid_length=ms.Tensor(np.array([length], np.int32)),
            block_tables=ms.Tensor(np.arange(4, dtype=np.int32)[None]),
            slot_mapping=ms.Tensor(np.array(slots, np.int32)),
        )
        return first(found).reshape(-1)

    ids, rest = IDS[0].tolist(), 64 - PROMPT
    network.add_flags_custom(is_first_iteration=True)
    call([*ids[:PROMPT], *[2] * rest], [*range(PROMPT), *[-1] * rest], PROMPT)
    network.add_flags_custom(is_first_iteration=False)
    return np.stack([call([ids[n]], [n], n + 1) for n in range(PROMPT, END)])


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(found - wanted).mean() / np.square(wanted).mean())


def float_logits(network, run, write_yaml) -> np.ndarray:
    """What a network that caches would compute in floating point, by its twin without a cache: on a CPU it cannot."""
    import mindspore as ms

    weights = {n: p for n, p in network.parameters_dict().items() if not n.endswith("_cache")}
    write_yaml()
    twin = run(NETWORK)["network"]
    assert ms.load_param_into_net(twin, weights) == ([], [])
    return logits(twin)[PROMPT:END]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_printed_configuration_quantizes_saves_and_loads(name, run, write_yaml):
    """The file loads into a network that DEPLOY mode prepared, with nothing left over, and computes the same."""
    import mindspore as ms

    cached = "kvcache_quant_dtype=msdtype.int8" in CONFIGURATIONS[name]
    compute = decoded if cached else logits
    write_yaml(use_past=cached)
    network = run(NETWORK, DATASET)["network"]
    wanted = float_logits(network, run, write_yaml) if cached else logits(network)
    names = run(
        f"{IMPORTS}\nfrom mindspore_gs.ptq.ptq import PTQ", CONFIGURATIONS[name], "ptq = PTQ(config=ptq_config)"
    )
    names["network"] = network
    run(SAVE)
    found = compute(network)
    assert 0 < error(found, wanted) < (0.05 if names["ptq_config"].weight_quant_dtype == "qint4x2" else 0.01)

    write_yaml(use_past=cached)
    fresh = run(NETWORK)["network"]
    config = names["ptq_config"]
    config.mode = type(config.mode).DEPLOY
    names["PTQ"](config).apply(fresh)
    file = ms.load_checkpoint("a8w8c8.ckpt")
    missing, left = ms.load_param_into_net(fresh, file)
    assert left == []
    assert [name for name in missing if not name.endswith("_cache")] == []
    assert np.array_equal(compute(fresh), found)
    if cached:
        stored = [name for name in file if "paged_attention_mgr" in name]
        assert len(stored) == 6, "scales and zero points of keys and of values, and both joined"


def test_a_cache_alone_has_nothing_to_quantize_in_a_network_without_one(run):
    names = run(NETWORK, DATASET, IMPORTS, CONFIGURATIONS["c8"], "from mindspore_gs.ptq.ptq import PTQ")
    with (
        pytest.warns(UserWarning, match="nothing in this network caches keys and values"),
        pytest.raises(ValueError, match="nothing to quantize"),
    ):
        names["PTQ"](names["ptq_config"]).apply(names["network"], names["helper"], names["ds"])


def test_the_golden_stick_page_from_the_first_line_to_the_last(run, write_yaml):
    import mindspore as ms

    write_yaml(use_past=True)
    network = run(NETWORK, DATASET)["network"]
    wanted = float_logits(network, run, write_yaml)
    names = run(ALGORITHM)
    names["network"] = network
    run(SAVE)
    found = decoded(network)
    assert 0 < error(found, wanted) < 0.01
    parameters = network.parameters_dict()
    assert "model.layers.0.feed_forward.w2.weight" in parameters
    assert "model.layers.0.feed_forward.w1._layer.weight" in parameters
    assert "model.layers.0.attention.infer_attention.paged_attention_mgr.quant_pa.k_v_scale_fusion" in parameters
    write_yaml(checkpoint="a8w8c8.ckpt", use_past=True)
    deployed = run(DEPLOY)["network"]
    assert np.array_equal(decoded(deployed), found)
    deployed.argmax = lambda x, axis: ms.Tensor(x.asnumpy().argmax(axis))  # MindFormers' own runs on Ascend alone
    deployed.add_flags_custom(is_first_iteration=True)
    (generated,) = deployed.generate(IDS[:, :6], do_sample=False, max_new_tokens=4)
    assert generated[:6].tolist() == IDS[0, :6].tolist()
    assert len(generated) == 10


def test_the_vllm_mindspore_page(run, research):
    """SmoothQuant for the network, and for `w2` activations per token."""
    import mindspore as ms

    names = run(NETWORK, DATASET, "from mindspore_gs.ptq import PTQMode\nquant_mode = PTQMode.QUANTIZE")
    wanted = logits(names["network"])
    names = run(QWEN3)
    found = logits(names["network"])
    assert 0 < error(found, wanted) < 0.01
    parameters = names["network"].parameters_dict()
    assert parameters["model.layers.0.attention.wq.quant_op.input_scale"].shape == (256,)
    assert "model.layers.0.feed_forward.w2._layer.matmul.weight_scale" in parameters
    assert "model.layers.0.feed_forward.w2.quant_op.input_scale" not in parameters

    deploying = QWEN3[: QWEN3.index("ptq.apply")].replace("quant_mode", "PTQMode.DEPLOY")
    names = run(NETWORK, deploying, "ptq.apply(network)")
    saved = ms.load_checkpoint("Qwen3-8B-A8W8.safetensors", format="safetensors")
    assert ms.load_param_into_net(names["network"], saved) == ([], [])
    assert np.array_equal(logits(names["network"]), found)
