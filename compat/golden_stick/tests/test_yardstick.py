"""One layer that is hard to quantize, every way there is: nowhere worse than Golden Stick 1.4.1 at its best.

512 input features, 256 output features, weights of deviation 0.05, 512 tokens, six channels forty times as large as
the others and off centre; for four-bit weights the inputs are correlated. What is compared is the squared error of the
network's output, relative to the squares of the float one's, in float64.

Golden Stick was measured on a layer of this kind, not on these numbers, and the error of plain rounding hangs on little
else: from seed to seed it differs by four percent. So the seeds here are such that it errs as much as on Golden Stick's
layer, and what is left is the algorithms' doing. That plain rounding itself is level is shown apart, on any layer: its
codes are Golden Stick's own.
"""

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.lane

TOKENS, IN, OUT = 512, 512, 256
A8 = "weight_quant_dtype='int8', act_quant_dtype='int8'"
W4 = "weight_quant_dtype='qint4x2', act_quant_dtype=None"
G64 = "weight_quant_granularity=QuantGranularity.PER_GROUP, group_size=64"
G128 = "weight_quant_granularity=QuantGranularity.PER_GROUP, group_size=128"
GPTQ = "precision_recovery=PrecisionRecovery.GPTQ, algo_args=GPTQQuantConfig"
AWQ = "outliers_suppression=OutliersSuppressionType.AWQ"
ROWS = {
    "w8": ("weight_quant_dtype='int8'", 5.1e-5),
    "a8w8": (A8, 4.58e-3),
    "a8w8 smooth": (f"{A8}, outliers_suppression=OutliersSuppressionType.SMOOTH", 2.470e-4),
    "w4": (W4, 1.49e-2),
    "w4 g64": (f"{W4}, {G64}", 9.7e-3),
    "awq": (f"{W4}, {AWQ}", 5.7e-3),
    "awq g64": (f"{W4}, {AWQ}, {G64}", 2.93e-3),
    "gptq": (f"{W4}, {GPTQ}(damp_percent=0.1)", 3.24e-3),
    "gptq g64": (f"{W4}, {G64}, {GPTQ}()", 1.63e-3),
    "gptq g64, in order of activations": (f"{W4}, {G64}, {GPTQ}(desc_act=True)", 1.63e-3),
    "gptq g64, static": (f"{W4}, {G64}, {GPTQ}(static_groups=True)", 1.63e-3),
    "gptq g64, static, in order of activations": (f"{W4}, {G64}, {GPTQ}(desc_act=True, static_groups=True)", 4e-4),
    "gptq g128, static": (f"{W4}, {G128}, {GPTQ}(static_groups=True)", 1.87e-3),
    "gptq g128, static, in order of activations": (
        f"{W4}, {G128}, {GPTQ}(desc_act=True, static_groups=True)",
        1.87e-3,
    ),
}


PLAIN = {"w8": (8, IN), "w4": (4, IN), "w4 g64": (4, 64)}
"""Rows of plain rounding: bits, and how many input features share a scale."""
GOLDEN = Path(__file__).parents[3] / "gs_plugins" / "formats" / "golden_stick" / "tests" / "golden"


def drawn(correlated: bool, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``(tokens, in)`` and a weight ``(out, in)``, float32."""
    seed = seed if seed is not None else 54 if correlated else 46
    random = np.random.default_rng(seed)
    x = random.standard_normal((TOKENS, IN))
    if correlated:
        x = 0.2 * x + random.standard_normal((TOKENS, 56)) @ random.standard_normal((56, IN)) / 56**0.5
    large = random.permutation(IN)[:6]
    x[:, large] = 40 * x[:, large] + 0.5
    weight = 0.05 * np.random.default_rng(seed + 1000).standard_normal((OUT, IN))
    return x.astype(np.float32), weight.astype(np.float32)


@pytest.fixture(scope="module")
def layer(mindspore):
    """A network of one layer: token `n` is row `n` of the inputs."""
    ms = mindspore
    from mindformers.modules.layers import Linear

    class Layer(ms.nn.Cell):
        def __init__(self, x, weight):
            super().__init__()
            self.embedding = ms.nn.Embedding(TOKENS, IN, embedding_table=ms.Tensor(x))
            self.linear = Linear(IN, OUT, has_bias=False, compute_dtype=ms.float32)
            self.linear.weight.set_data(ms.Tensor(weight))

        def construct(self, input_ids):
            return self.linear(self.embedding(input_ids))

    def make(correlated, seed=None):
        x, weight = drawn(correlated, seed)
        return Layer(x, weight), x.astype(np.float64) @ weight.T.astype(np.float64)

    return make


@pytest.mark.parametrize("row", ROWS)
def test_no_row_is_worse_than_golden_sticks_best(row, layer):
    import mindspore as ms
    import mindspore_gs.ptq as gs

    text, most = ROWS[row]
    network, wanted = layer(correlated="qint4x2" in text)
    tokens = np.arange(TOKENS).reshape(8, -1)
    ptq = gs.PTQ(eval(f"PTQConfig({text})", vars(gs)))
    ptq.apply(network, datasets=tokens)
    found = network(ms.Tensor(tokens, ms.int32)).asnumpy().reshape(TOKENS, OUT).astype(np.float64)
    error = np.square(found - wanted).sum() / np.square(wanted).sum()
    print(f"{row}: {error:.3e}, theirs {most:.3e}")
    assert error <= 1.005 * most  # theirs is known to two or three digits


def golden_sticks(weight: np.ndarray, bits: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What its rounding gives, codes ``(out, in)``, and which weights lie on no tie, where their last bit decides: the
    largest magnitude that shares a scale always does, half a step beyond the largest code."""
    groups = weight.reshape(len(weight), -1, size).astype(np.float64)
    largest = 2 ** (bits - 1) - 1
    steps = (groups / np.abs(groups).max(-1, keepdims=True) * (largest + 0.5)).reshape(weight.shape)
    return np.clip(np.rint(steps), -largest - 1, largest), np.abs(np.abs(steps) % 1 - 0.5) > 1e-4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("row", PLAIN)
def test_plain_rounding_is_golden_sticks_to_the_code_on_any_layer(row, seed, layer):
    import mindspore_gs.ptq as gs

    from gs_golden_stick import int4

    network, _ = layer(correlated=False, seed=seed)
    weight = network.linear.weight.asnumpy().copy()
    gs.PTQ(eval(f"PTQConfig({ROWS[row][0]})", vars(gs))).apply(network)
    stored = network.linear._layer.weight.asnumpy()
    found = stored if row == "w8" else int4.unpack(stored.view(np.int8))
    wanted, clear = golden_sticks(weight, *PLAIN[row])
    assert np.array_equal(found[clear], wanted[clear])
    assert np.abs(found - wanted).max() <= 1
    assert clear.mean() > 0.98


def test_that_is_how_golden_stick_rounds(mindspore):
    """By what it saved of one weight in eight bits and in four: a step of these is 127.5 / 7.5 of those."""
    eight, four = (mindspore.load_checkpoint(str(GOLDEN / f"{name}.ckpt")) for name in ("rtn8", "rtn4"))
    scales = [name for name in eight if name.endswith("weight_scale")]
    for name in scales:
        ratio = four[name].asnumpy().astype(np.float64) / eight[name].asnumpy()
        assert np.allclose(ratio, 127.5 / 7.5, rtol=1e-3), "each is rounded to float16"
    assert scales
