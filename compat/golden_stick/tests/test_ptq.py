"""`PTQ` on live networks: what it takes, what it leaves behind, and what Golden Stick's own checkpoints find there."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from gs_compat.config import PTQConfig
from gs_compat.ptq import PTQ, RoundToNearest, SmoothQuant
from gs_compat.words import (
    LayerQuantizeAlgo,
    OutliersSuppressionType,
    PrecisionRecovery,
    PTQMode,
    QuantGranularity,
)
from gs_core import GoldenStickError

pytestmark = [pytest.mark.lane, pytest.mark.usefixtures("mindspore")]

GOLDEN = Path(__file__).parents[3] / "gs_plugins" / "formats" / "golden_stick" / "tests" / "golden"
TOKENS = np.random.default_rng(0).integers(0, 64, (4, 16))
W4G = {"weight_quant_dtype": "qint4x2", "weight_quant_granularity": QuantGranularity.PER_GROUP, "group_size": 64}
A8 = {"act_quant_dtype": "int8"}
PER_TOKEN = {"act_quant_granularity": QuantGranularity.PER_TOKEN}
SMOOTH = {"outliers_suppression": OutliersSuppressionType.SMOOTH}
AWQ = {"outliers_suppression": OutliersSuppressionType.AWQ}
SAVED = {
    "rtn8": {},
    "rtn4": {"weight_quant_dtype": "qint4x2"},
    "rtn4g": W4G,
    "a8w8": A8,
    "a8dynw8": A8 | PER_TOKEN,
    "sq": A8 | SMOOTH,
    "awq": W4G | AWQ,
}
"""What Golden Stick 1.4.1 saved, and how."""
A8W4 = W4G | A8 | PER_TOKEN | {"precision_recovery": PrecisionRecovery.GPTQ}
A8W4["algo_args"] = {"desc_act": True, "static_groups": True}


@pytest.fixture(scope="module")
def toy(mindspore):
    """The network that Golden Stick's checkpoints are of, with random weights: two layers of `wq` and `w2`."""
    from mindformers.modules.layers import Linear

    class Layer(mindspore.nn.Cell):
        def __init__(self, transposed):
            super().__init__()
            half = {"has_bias": False, "compute_dtype": mindspore.float16, "param_init_type": mindspore.float16}
            self.wq, self.w2 = (Linear(256, 256, transpose_b=not transposed, **half) for _ in range(2))

        def construct(self, x):
            return x + self.w2(mindspore.ops.relu(self.wq(x)))

    class Toy(mindspore.nn.Cell):
        def __init__(self, transposed):
            super().__init__()
            self.emb = mindspore.nn.Embedding(64, 256, embedding_table="normal")
            self.layers = mindspore.nn.CellList([Layer(transposed), Layer(transposed)])
            half = {"has_bias": False, "compute_dtype": mindspore.float16, "param_init_type": mindspore.float16}
            self.lm_head = Linear(256, 64, **half)

        def construct(self, input_ids):
            x = self.emb(input_ids)
            for layer in self.layers:
                x = layer(x)
            return self.lm_head(x)

    def make(transposed=False):
        network, random = Toy(transposed), np.random.default_rng(0)
        for parameter in network.get_parameters():
            value = random.standard_normal(parameter.shape).astype(np.float32) / 16
            value = value.T if transposed and "layers" in parameter.name else value
            parameter.set_data(mindspore.Tensor(value, parameter.dtype))
        network.emb.embedding_table.set_data(network.emb.embedding_table * 16)
        return network

    return make


@pytest.fixture(scope="module")
def logits(mindspore):
    ids = mindspore.Tensor(TOKENS, mindspore.int32)
    return lambda network: network(ids).asnumpy().astype(np.float64)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(found - wanted).mean() / np.square(wanted).mean())


def parameters(network) -> dict:
    return {name: (tuple(p.shape), str(p.dtype)) for name, p in network.parameters_dict().items()}


@pytest.mark.parametrize("case", SAVED)
def test_golden_sticks_own_checkpoints_load_into_a_deployed_network_that_runs(case, toy, mindspore):
    network = toy()
    PTQ(PTQConfig(mode=PTQMode.DEPLOY, **SAVED[case])).apply(network)
    saved = mindspore.load_checkpoint(str(GOLDEN / f"{case}.ckpt"))  # of the first layer
    found = parameters(network)
    mine = {name: found[name] for name in found if name.startswith("layers.0.wq.")}
    assert mine == {name: (tuple(p.shape), str(p.dtype)) for name, p in saved.items() if name in mine}
    assert len(mine) == len([name for name in saved if name.startswith("layers.0.wq.")]) > 0
    _, left = mindspore.load_param_into_net(network, saved)
    assert left == []
    x = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float16)
    product = network.layers[0].wq(mindspore.Tensor(x)).asnumpy()
    assert np.isfinite(product).all()
    assert product.std() > 0.01


@pytest.mark.parametrize("case", [*SAVED, "a8w4"])
def test_what_is_quantized_is_saved_as_golden_stick_would(case, toy, logits, mindspore, tmp_path):
    values = (SAVED | {"a8w4": A8W4})[case]
    network = toy()
    wanted = logits(network)
    PTQ(PTQConfig(**values)).apply(network, datasets=TOKENS)
    found = logits(network)
    assert 0 < error(found, wanted) < (0.05 if "weight_quant_dtype" in values else 0.002)
    deployed = toy()
    PTQ(PTQConfig(mode=PTQMode.DEPLOY, **values)).apply(deployed)
    assert parameters(network) == parameters(deployed)
    mindspore.save_checkpoint(network.parameters_dict(), str(tmp_path / "saved"), format="safetensors")
    saved = mindspore.load_checkpoint(str(tmp_path / "saved.safetensors"), format="safetensors")
    assert mindspore.load_param_into_net(deployed, saved) == ([], [])
    assert np.array_equal(logits(deployed), found)


@pytest.mark.parametrize("case", ["rtn8", "rtn4g", "a8dynw8", "sq"])
def test_codes_lie_as_the_weight_of_their_layer_did(case, toy, logits, mindspore):
    """With ``transpose_b=False`` int8 ones are ``(in, out)``, in the network that is quantized and in the prepared."""
    values = SAVED[case]
    networks = [toy(), toy(transposed=True), toy(transposed=True)]
    for network in networks[:2]:
        PTQ(PTQConfig(**values)).apply(network, datasets=TOKENS)
    wanted, found = logits(networks[0]), logits(networks[1])
    assert np.array_equal(found, wanted)
    weights = [network.layers[0].wq._layer.weight.asnumpy() for network in networks[:2]]
    assert np.array_equal(weights[1], weights[0] if "weight_quant_dtype" in values else weights[0].T)
    PTQ(PTQConfig(mode=PTQMode.DEPLOY, **values)).apply(networks[2])
    assert mindspore.load_param_into_net(networks[2], networks[1].parameters_dict()) == ([], [])
    assert np.array_equal(logits(networks[2]), wanted)


def test_all_call_shapes_mean_the_same(toy, logits):
    from gs_compat.helpers import NetworkHelper

    class Helper(NetworkHelper):
        def get_spec(self, name):
            raise KeyError(name)

    samples = [{"input_ids": row} for row in TOKENS]
    found = []
    for arguments, more in [
        ((Helper(), TOKENS), {}),
        ((TOKENS,), {}),
        ((samples,), {"framework": "mindformers"}),
        ((), {"datasets": samples}),
        ((), {"network_helper": Helper(), "datasets": TOKENS}),
    ]:
        network = toy()
        assert PTQ(PTQConfig(**A8)).apply(network, *arguments, **more) is network
        found.append(logits(network))
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_rounding_weights_needs_no_data_and_the_rest_says_so_and_changes_nothing(toy):
    network = toy()
    PTQ().apply(network)
    assert "layers.1.w2._layer.weight" in network.parameters_dict()
    for values in (A8, {"precision_recovery": PrecisionRecovery.GPTQ}):
        network = toy()
        before = parameters(network)
        with pytest.raises(GoldenStickError, match="pass datasets to apply"):
            PTQ(PTQConfig(**values)).apply(network)
        assert parameters(network) == before


def test_what_cannot_be_quantized_is_said(toy, caplog):
    PTQ().apply(toy())
    assert "lm_head (outside the decoder blocks)" in caplog.text


def test_policies_and_blacklists_decide_layer_by_layer(toy):
    policies = OrderedDict({r"network\.layers\.1\.w2": PTQConfig(**A8, **PER_TOKEN)})
    network = toy()
    PTQ(PTQConfig(opname_blacklist=["layers.0.w2"]), policies).apply(network)
    found = parameters(network)
    assert found["layers.0.w2.weight"] == ((256, 256), "Float16")
    assert found["layers.0.wq._layer.matmul.weight_scale"] == ((256,), "Float16")
    assert found["layers.1.w2._layer.matmul.weight_scale"] == ((256,), "Float32")


def test_a_policy_has_options_of_its_own(toy):
    def scales(alpha, policies=None):
        network, values = toy(), A8 | PER_TOKEN | SMOOTH
        ptq = PTQ(PTQConfig(**values, algo_args={"alpha": alpha}), policies)
        ptq.apply(network, datasets=TOKENS)
        found = {n: p.asnumpy() for n, p in network.parameters_dict().items() if n.endswith("smooth_scale")}
        return found, ptq.summary(network)

    more = PTQConfig(**A8, **PER_TOKEN, **SMOOTH, algo_args={"alpha": 0.8})
    found, summary = scales(0.5, OrderedDict({r".*\.1\.wq": more}))
    half, _ = scales(0.5)
    first, second = (f"layers.{number}.wq._layer.matmul.smooth_scale" for number in range(2))
    assert np.array_equal(found[first], half[first])
    assert found[second].std() > 1.2 * half[second].std()
    assert summary.count("smoothquant#2+rtn") == 1


def test_a_fallback_is_int8_weights(toy):
    ptq = PTQ(PTQConfig(**A8))
    ptq._config.fallback_blacklist = {"w2": LayerQuantizeAlgo.A16W8}
    network = toy()
    ptq.apply(network, TOKENS)
    found = parameters(network)
    assert "layers.0.w2._layer.matmul.weight_zp" in found
    assert "layers.0.wq.quant_op.input_scale" in found


def test_what_no_cell_computes_is_said_before_anything_is_quantized(mindspore):
    from mindformers.modules.layers import Linear

    class Experts(mindspore.nn.Cell):
        def __init__(self):
            super().__init__()
            self.emb = mindspore.nn.Embedding(64, 64)
            self.router = mindspore.nn.Dense(64, 64)
            of = {"has_bias": False, "compute_dtype": mindspore.float32, "expert_num": 2, "use_gmm": True}
            self.w1 = Linear(64, 64, **of)

        def construct(self, input_ids):
            x = self.router(self.emb(input_ids)).reshape(-1, 64)
            half = len(x) // 2
            return self.w1(x, mindspore.Tensor([half, len(x)], mindspore.int32))

    network = Experts()
    before = parameters(network)
    with pytest.raises(GoldenStickError, match=r"experts\.0\.w1: grouped products of experts have no quantized cell"):
        PTQ().apply(network, datasets=TOKENS)
    assert parameters(network) == before
    PTQ(PTQConfig(opname_blacklist=["w1"])).apply(network)
    assert set(parameters(network)) >= {"router._layer.weight", "w1.weight"}


def test_pokes_at_the_configuration_count(toy, logits):
    errors = []
    for symmetric in (True, False):
        network = toy()
        wanted = logits(network)
        ptq = PTQ(PTQConfig(**W4G))
        ptq._config.weight_symmetric = symmetric
        ptq.apply(network)
        errors.append(error(logits(network), wanted))
        zero = network.parameters_dict()["layers.0.wq._layer.matmul.weight_zp"].asnumpy()
        assert bool(zero.any()) is not symmetric
    assert errors[1] < errors[0]


def test_settings_are_validated_together():
    ptq = PTQ()
    with pytest.raises(ValueError, match="needs act_quant_dtype"):
        ptq.set_ptq_config(act_quant_granularity=QuantGranularity.PER_TOKEN)
    with pytest.raises(AttributeError, match="Did you mean 'weight_clip'"):
        ptq.set_ptq_config(weight_clipp=True)
    assert ptq._config.act_quant_granularity is QuantGranularity.PER_TENSOR
    ptq.set_ptq_config(weight_clip=True)
    assert ptq._config.weight_clip


def test_decoder_layer_types_may_be_named_and_need_not(toy, logits):
    network = toy()
    PTQ(PTQConfig(**A8)).apply(network, TOKENS)
    wanted, network = logits(network), toy()
    ptq = PTQ(PTQConfig(**A8))
    ptq.decoder_layer_types.append(type(network.layers[0]))
    ptq.apply(network, TOKENS)
    assert np.array_equal(logits(network), wanted)
    ptq = PTQ()
    ptq.decoder_layer_types.append(dict)
    with pytest.warns(UserWarning, match="no cell of dict; its blocks are found"):
        ptq.apply(toy())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("values", "most"), [({}, 1e-5), (W4G, 1e-5), (A8 | PER_TOKEN | SMOOTH, 1e-4)])
def test_fake_quantization_leaves_floating_point_layers(toy, logits, values, most, transposed, caplog):
    network, quantized = toy(transposed), toy()
    before = parameters(network)
    PTQ(PTQConfig(**values)).fake_quant(network, datasets=TOKENS)
    PTQ(PTQConfig(**values)).apply(quantized, datasets=TOKENS)
    assert parameters(network) == before
    assert error(logits(network), logits(quantized)) < most
    assert ("activations and caches stay in floating point" in caplog.text) is ("act_quant_dtype" in values)


def test_a_summary_is_a_table(toy, capsys):
    network = toy()
    ptq = PTQ(PTQConfig(opname_blacklist=["w2"], **A8, **SMOOTH))
    assert ptq.summary(network) == "no layer of this network is quantized"
    ptq.apply(network, TOKENS)
    assert ptq.convert(network) is network
    capsys.readouterr()
    lines = ptq.summary(network).splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    assert lines[0].split() == ["layer", "scheme", "algorithms", "relative", "error"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["layers.0.wq", "W8A8", "smoothquant+rtn"],
        ["layers.1.wq", "W8A8", "smoothquant+rtn"],
    ]


def test_older_names(toy):
    network = toy()
    SmoothQuant(PTQConfig(opname_blacklist=["w2"])).apply(network, TOKENS)
    assert parameters(network)["layers.0.wq.quant_op.input_scale"] == ((256,), "Float16")
    network = toy()
    RoundToNearest().apply(network)
    assert "layers.0.wq._layer.matmul.weight_zp" in parameters(network)
    with pytest.raises(ValueError, match="use PTQ for activations"):
        RoundToNearest(PTQConfig(**A8))


def test_a_network_that_is_quantized_already_is_told_so(toy):
    network = toy()
    PTQ().apply(network)
    with pytest.raises(GoldenStickError, match="no layer is left to quantize"):
        PTQ().apply(network)


def test_other_frameworks_are_sent_on():
    with pytest.raises(ValueError, match=r"gs_core\.quantize"):
        PTQ().apply(None, framework="mindone")
