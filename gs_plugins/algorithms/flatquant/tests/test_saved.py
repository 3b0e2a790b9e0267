"""A file of matrices that is damaged, or of another model, is refused in a line that names the file and the tensor."""

import pytest
import torch

from gs_core import CheckpointError
from gs_core.arrays import from_raw
from gs_core.storage import read_header, write_safetensors
from gs_flatquant import FlatQuant, Options
from gs_flatquant.saved import load


@pytest.fixture
def saved(toy, tmp_path):
    """The block, the file of its matrices (with clipping of everything), and the tensors in it."""
    block, layers, observed, data = toy()
    options = Options(epochs=0, lac=True, save_matrices=str(tmp_path / "flat"))
    FlatQuant(options).smooth(block, layers, observed, data, lambda **facts: None)
    path = tmp_path / "flat" / "flat_matrices-00000.safetensors"
    tensors = {name: torch.from_numpy(from_raw(stored.read())) for name, stored in read_header(path).items()}
    return block, path, tensors


def refusal(block, path, tensors):
    write_safetensors(path, tensors.items())
    with pytest.raises(CheckpointError) as caught:
        load(path.parent, block)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_a_file_holds_every_kind_of_tensor_once_it_is_saved(saved):
    block, path, tensors = saved
    transforms, clips = load(path.parent, block)
    assert {name.rpartition(".")[2] for name in tensors} == {"scale", "values", "left", "right", "keep", "clip"}
    assert len(transforms) == sum(name.endswith(("scale", "values", "left")) for name in tensors)
    assert {*clips} == {*block.layers}


@pytest.mark.parametrize("name", ["blocks.0.q.input.left", "blocks.0.q.input.right", "blocks.0.o.input.right"])
def test_a_missing_factor_is_named(saved, name):
    block, path, tensors = saved
    del tensors[name]
    assert f"'{name}' is missing; learn" in refusal(block, path, tensors)


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("blocks.0.attention_norm.scale", (63,), "has shape (63,); expected (64,)"),
        ("blocks.0.v.values", (5, 5), "has shape (5, 5); expected (16, 16)"),
        ("blocks.0.q.input.left", (8, 4), "has shape (8, 4); expected a square matrix"),
        ("blocks.0.q.input.left", (1,), "has shape (1,); expected a square matrix"),
        ("blocks.0.q.input.left", (0, 0), "has shape (0, 0); expected a square matrix"),
        ("blocks.0.q.input.left", (7, 7), "is of another model: its factors 7 · 8 do not divide 64 features"),
        ("blocks.0.q.input.right", (2, 8, 8), "has shape (2, 8, 8); expected a square matrix"),
        ("blocks.0.q.input.keep", (2,), "has shape (2,); expected (1,)"),
        ("blocks.0.q.clip", (2, 64, 2), "has shape (2, 64, 2); expected (2, 64, 1)"),
    ],
)
def test_a_wrong_shape_is_named(saved, name, shape, why):
    block, path, tensors = saved
    tensors[name] = torch.eye(*shape) if len(shape) == 2 else torch.ones(shape)
    assert f"'{name}' {why}" in refusal(block, path, tensors)


@pytest.mark.parametrize("kind", ["scale", "values", "left", "right", "keep", "clip"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int32])
def test_another_dtype_is_named(saved, kind, dtype):
    block, path, tensors = saved
    name = next(name for name in tensors if name.endswith(f".{kind}"))
    tensors[name] = tensors[name].to(dtype)
    assert f"'{name}' is {str(dtype)[6:]}; expected float32" in refusal(block, path, tensors)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("blocks.0.mlp_norm.scale", torch.zeros(64), "holds a zero"),
        ("blocks.0.v.values", torch.zeros(16, 16), "has no inverse"),
        ("blocks.0.q.input.left", torch.ones(8, 8), "has no inverse"),
        ("blocks.0.q.input.right", torch.full((8, 8), torch.inf), "holds NaN or infinity"),
        ("blocks.0.o.input.right", torch.tensor([2.5]), "is no whole number"),
        ("blocks.0.o.input.right", torch.tensor([-16.0]), "is no whole number"),
        ("blocks.0.q.input.keep", torch.tensor([0.0]), "is 0.0; expected a part of a range"),
        ("blocks.0.q.input.keep", torch.tensor([1.5]), "is 1.5; expected a part of a range"),
        ("blocks.0.q.clip", torch.full((2, 64, 1), torch.nan), "holds NaN or infinity"),
    ],
)
def test_a_value_that_cannot_be_is_named(saved, name, value, why):
    block, path, tensors = saved
    tensors[name] = value
    assert f"'{name}' {why}" in refusal(block, path, tensors)


@pytest.mark.parametrize("name", ["elsewhere.left", "blocks.0.q.input.middle", "blocks.0.q.scale", "left"])
def test_what_is_of_another_model_is_named(saved, name):
    block, path, tensors = saved
    assert f"'{name}' is of another model: nothing in blocks.0 takes it" in refusal(
        block, path, tensors | {name: torch.eye(8)}
    )


def test_a_file_that_is_not_there_is_named(saved):
    block, path, _ = saved
    path.unlink()
    with pytest.raises(CheckpointError, match="save_matrices writes them"):
        load(path.parent, block)


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_file_that_was_cut_short_is_named(saved, left):
    block, path, _ = saved
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"flat_matrices-00000\.safetensors: .*cut short"):
        load(path.parent, block)
