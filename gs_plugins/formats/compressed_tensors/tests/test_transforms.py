"""``transform_config`` as the library that defines it reads it, and as it is read back here."""

import numpy as np
import pytest

from gs_compressed_tensors.transforms import check, input_map, key_map, method, requiring, to_config
from gs_core import CheckpointError

ATTENTION = "model.layers.0.self_attn"


def described(*sizes: int) -> dict:
    return {"kind": "hadamard", "sizes": list(sizes), "identity": [False] * len(sizes), "scaled": False}


def inputs(*layers: str) -> dict:
    return {"transform_config": to_config(dict.fromkeys(layers, described(16, 8)), {}, {})}


def keys(*attentions: str, aliases=None) -> dict:
    return {"transform_config": to_config({}, dict.fromkeys(attentions, described(32)), aliases or {})}


def test_a_hadamard_at_an_input_is_the_librarys_transform_config():
    """The library's own model of it takes it, and its matrix is ours."""
    torch, transforms = map(pytest.importorskip, ("torch", "compressed_tensors.transform"))
    found = inputs("a.down")
    group = transforms.TransformConfig.model_validate(found["transform_config"]).config_groups["hadamard_128"]
    assert (group.type, group.head_dim, group.randomize) == ("hadamard", 128, False)
    assert [(a.targets, a.location, a.inverse) for a in group.apply] == [(["a.down"], "input", False)]
    from compressed_tensors.transform.utils.hadamard import deterministic_hadamard_matrix

    theirs = deterministic_hadamard_matrix(128, torch.float64).numpy() / 128**0.5
    ours = input_map(found, "a.down")
    assert np.allclose(ours.dense(128), theirs, atol=1e-6)
    assert ours.kind == "hadamard"
    assert input_map(found, "a.up") is None


def test_rotated_keys_are_said_as_spinquants_r3():
    """Of every attention module, the query and the key on its way into the cache, by one matrix."""
    transforms = pytest.importorskip("compressed_tensors.transform")
    found = keys(ATTENTION)
    (group,) = transforms.TransformConfig.model_validate(found["transform_config"]).config_groups.values()
    assert (group.type, group.head_dim, group.randomize) == ("hadamard", 32, False)
    assert [(a.targets, a.location, a.inverse) for a in group.apply] == [
        ([ATTENTION], "q_attn", False),
        ([ATTENTION], "k_cache", False),
    ]
    quarter = input_map(inputs("a"), "a").dense(128)[:32, :32]
    assert key_map(found, ATTENTION, 32).dense(32) == pytest.approx(2 * quarter), "Sylvester's matrices nest"
    assert key_map(found, "model.layers.1.self_attn", 32) is None
    assert input_map(found, f"{ATTENTION}.q_proj") is None


def test_attention_modules_are_named_as_engines_spell_them_too():
    found = keys(ATTENTION, aliases={ATTENTION: "language.layers.0.self_attn"})
    assert key_map(found, "language.layers.0.self_attn", 32) is not None


def test_other_writers_name_attention_by_a_pattern():
    """llm-compressor's SpinQuant does."""
    assert key_map(keys("re:.*self_attn$"), ATTENTION, 64).block == 32


def test_a_checkpoint_that_requires_transforms_names_no_quant_method():
    """transformers refuses a quantization_config without quant_method. It would ignore an unknown name."""
    plain = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    found = requiring(plain, inputs("a.down")["transform_config"])
    assert "quant_method" not in found and method(found) == method(plain) == "compressed-tensors"
    check(found)
    check(plain)


@pytest.mark.parametrize("left", [None, {}, {"config_groups": {}}])
def test_a_checkpoint_whose_transforms_were_removed_is_refused(left):
    found = requiring({"quant_method": "compressed-tensors"}, inputs("a.down")["transform_config"])
    with pytest.raises(CheckpointError, match="no transform_config"):
        check(found | {"transform_config": left})


def test_no_maps_no_transform_config():
    assert to_config({}, {}, {}) is None
    assert input_map({}, "a.down") is None
    assert key_map({}, ATTENTION, 32) is None


UNREADABLE = pytest.mark.parametrize(
    "change",
    [{"type": "random-hadamard"}, {"randomize": True}, {"head_dim": None}, {"head_dim": 12}],
    ids=["another type", "shuffled", "no size", "no power of two"],
)


@UNREADABLE
def test_transforms_that_are_not_read_are_an_error(change):
    found = inputs("a.down")
    found["transform_config"]["config_groups"]["hadamard_128"] |= change
    with pytest.raises(CheckpointError, match=r"a\.down: cannot read its entry of transform_config"):
        input_map(found, "a.down")


@UNREADABLE
def test_transforms_of_keys_that_are_not_read_are_an_error(change):
    found = keys(ATTENTION)
    found["transform_config"]["config_groups"]["keys_32"] |= change
    with pytest.raises(CheckpointError, match="self_attn: cannot read its entry of transform_config"):
        key_map(found, ATTENTION, 32)


def test_keys_that_are_rotated_without_their_queries_are_an_error():
    found = keys(ATTENTION)
    del found["transform_config"]["config_groups"]["keys_32"]["apply"][0]
    with pytest.raises(CheckpointError, match="self_attn: cannot read its entry of transform_config"):
        key_map(found, ATTENTION, 32)


def test_a_rotation_that_would_run_on_into_the_next_head_is_an_error():
    with pytest.raises(CheckpointError, match="self_attn: transform_config mixes 32 channels, a head has 16"):
        key_map(keys(ATTENTION), ATTENTION, 16)
