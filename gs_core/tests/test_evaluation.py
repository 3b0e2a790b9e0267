"""Perplexity, against closed forms and direct computation."""

import numpy as np
import pytest

from gs_core import CalibrationError, PlanError, evaluate
from gs_core.api import open_source
from gs_core.arrays import from_raw
from gs_core.storage import Checkpoint, write_safetensors
from gs_core.testing import ToyAdapter, write_toy

TEXT = np.random.default_rng(1).integers(0, 256, 1000)


def measured(folder, text=TEXT, seq_len=20, windows=6):
    return evaluate(folder, text, seq_len=seq_len, windows=windows, adapter=ToyAdapter())


def changed(folder, **factors):
    """The toy with some tensors multiplied, float32."""
    tensors = {name: from_raw(tensor.read()) for name, tensor in Checkpoint(folder).tensors.items()}
    for name in tensors:
        for part, factor in factors.items():
            if part in name:
                tensors[name] = tensors[name] * np.float32(factor)
    write_safetensors(folder / "model.safetensors", tensors.items())
    return folder


@pytest.fixture
def toy(tmp_path):
    return write_toy(tmp_path / "toy", dtype="float32", hidden=32, intermediate=64)


def test_a_model_that_knows_nothing_has_the_vocabulary_for_perplexity(toy):
    assert measured(changed(toy, lm_head=0)).perplexity == pytest.approx(256)


def test_it_is_exp_of_the_mean_loss_of_the_next_token(toy):
    """With blocks that add nothing the model is a table of next tokens, which is easy to compute."""
    changed(toy, o=0, down=0)
    embed, norm, head = (
        from_raw(Checkpoint(toy)[f"{name}.weight"].read()).astype(np.float64) for name in ("embed", "norm", "lm_head")
    )
    logits = embed / np.sqrt((embed**2).mean(axis=1, keepdims=True) + 1e-6) * norm @ head.T
    log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    windows = TEXT[: 6 * 20].reshape(6, 20)
    losses = -log_probability[windows[:, :-1], windows[:, 1:]]
    found = measured(toy)
    assert found.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-6)
    assert (found.windows, found.seq_len, found.scheme, found.model) == (6, 20, "float", str(toy))


def test_windows_are_judged_each_on_its_own(toy):
    alone = [measured(toy, TEXT[start : start + 20], windows=1).perplexity for start in (0, 20, 40)]
    assert measured(toy, windows=3).perplexity == pytest.approx(np.exp(np.log(alone).mean()), rel=1e-6)


def test_batches_do_not_matter(toy, monkeypatch):
    whole = measured(toy).perplexity
    monkeypatch.setattr("gs_core.calibration.tokens.TOKENS_PER_BATCH", 20)
    assert measured(toy).perplexity == pytest.approx(whole, rel=1e-6)


def test_text_is_tokenized(toy, tmp_path):
    text = "".join(chr(97 + token % 26) for token in TEXT)
    (tmp_path / "text.txt").write_text(text)
    assert measured(toy, tmp_path / "text.txt") == measured(toy, np.frombuffer(text.encode(), np.uint8).astype(int))


def test_a_quantized_folder_is_computed_as_its_numbers_say(run, toy, tmp_path):
    """Weight-only: as a float toy with the dequantized weights. With activations: a little worse than that."""
    run(toy, tmp_path / "weights")
    run(toy, tmp_path / "both", scheme="W8A8_STATIC")
    for name in ("weights", "both"):
        model = open_source(tmp_path / name, adapter=ToyAdapter()).model
        plain = write_toy(tmp_path / f"{name}-float", dtype="float32", hidden=32, intermediate=64)
        tensors = [(tensor, model.read(tensor)) for tensor in model.checkpoint.tensors]
        write_safetensors(plain / "model.safetensors", tensors)
        dequantized, quantized = measured(plain).perplexity, measured(tmp_path / name).perplexity
        if name == "weights":
            assert quantized == dequantized
        else:
            assert 0 < abs(quantized / dequantized - 1) < 0.05
    assert measured(tmp_path / "both").scheme == "W8A8_STATIC"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"windows": 100},
            CalibrationError,
            "the text has 1000 tokens, 100 windows of 20 need 2000; give a longer text",
        ),
        ({"seq_len": 600, "windows": 1}, PlanError, "windows of 600 tokens: the model takes at most 512"),
        ({"text": np.arange(157, 357)}, CalibrationError, "token ids are between 157 and 276, but the model has 256"),
        ({"text": "absent.txt"}, CalibrationError, "absent.txt: no such text file or folder"),
    ],
)
def test_what_cannot_be_measured(given, error, message, toy):
    with pytest.raises(error) as caught:
        measured(toy, **given)
    assert message in str(caught.value)


def test_a_folder_that_no_installed_format_reads(run, toy, tmp_path, monkeypatch):
    run(toy, tmp_path / "out")
    monkeypatch.setattr("gs_core.testing.plugins.Plain.quant_method", "other")
    with pytest.raises(PlanError, match="is quantized as 'plain', which no installed format reads"):
        measured(tmp_path / "out")


@pytest.mark.parametrize("name", ["quantization_description.json", "quant_model_description.json"])
def test_a_description_beside_the_config_says_too_that_a_folder_is_quantized(name, toy, monkeypatch):
    (toy / name).write_text("{}")
    monkeypatch.setattr("gs_core.api.discovery.installed", lambda kind: {})
    with pytest.raises(PlanError, match=f"is quantized as '{name}', which no installed format reads"):
        measured(toy)
