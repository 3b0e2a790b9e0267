"""MindSpore's .ckpt: its own files are read to the byte, ours are laid out as its own, damage is one line."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gs_core import CheckpointError, OutputError
from gs_core.arrays import PACKED_INT4, RawTensor, from_raw, numpy_dtype
from gs_core.storage import SINGLE, Checkpoint, ckpt, read_ckpt, tensors, write_ckpt, write_safetensors

GOLDEN = Path(__file__).parent / "golden"


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    return {name: from_raw(tensor.read()) for name, tensor in read_ckpt(path).items()}


# --- MindSpore's files ---------------------------------------------------------------------------------------


def test_every_dtype():
    found = read_ckpt(GOLDEN / "dtypes.ckpt")
    numbers = np.arange(6).reshape(2, 3)
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32"):
        assert (found[name].dtype, found[name].shape) == (name, (2, 3))
        np.testing.assert_array_equal(from_raw(found[name].read()), numbers)
    assert from_raw(found["scalar"].read()) == np.float32(3.5)
    assert from_raw(found["bool"].read()).tolist() == [True, False]
    expected = np.array([[1, -2.5, 0], [1e30, 1e-30, 3]], np.float32).astype(numpy_dtype("bfloat16"))
    np.testing.assert_array_equal(from_raw(found["bf16"].read()), expected)


def test_packed_int4_is_read_as_its_bytes():
    stored = read_ckpt(GOLDEN / "dtypes.ckpt")["int4"]
    assert (stored.dtype, stored.shape, stored.nbytes) == (PACKED_INT4, (2, 3), 6)
    assert from_raw(stored.read()).tolist() == [[-3, -2, -1], [0, 1, 2]]


def test_numbers_saved_beside_the_parameters_are_scalars_and_text_is_left_out():
    found = arrays_of(GOLDEN / "dtypes.ckpt")
    assert found["epoch"].shape == () and found["epoch"] == 3
    assert "note" not in found


def test_slices_are_one_tensor(monkeypatch):
    found = read_ckpt(GOLDEN / "split_crc.ckpt")
    assert list(found) == ["before", "split", "after"]
    assert found["split"].nbytes == 3600
    expected = np.arange(900, dtype=np.float32).reshape(300, 3)
    np.testing.assert_array_equal(from_raw(found["split"].read()), expected)
    np.testing.assert_array_equal(from_raw(found["split"].map()), expected)
    monkeypatch.setattr(tensors, "CHUNK", 500)
    pieces = list(found["split"].chunks())
    assert max(map(len, pieces)) == 500 and b"".join(pieces) == expected.tobytes()


@pytest.mark.parametrize("mode", ["aes-gcm", "aes-cbc", "sm4-cbc"])
def test_an_encrypted_file_says_so(mode):
    with pytest.raises(CheckpointError, match="encrypted; save it from MindSpore without enc_key"):
        read_ckpt(GOLDEN / f"encrypted_{mode}.ckpt")


def test_mindspores_file_written_again_has_the_same_bytes(tmp_path, monkeypatch):
    """Field order, varints and slices are its own; the checksum is all that ours lacks."""
    theirs = (GOLDEN / "split_crc.ckpt").read_bytes()
    monkeypatch.setattr(ckpt, "SLICE", 1024)
    write_ckpt(tmp_path / "ours.ckpt", read_ckpt(GOLDEN / "split_crc.ckpt").items())
    assert (tmp_path / "ours.ckpt").read_bytes() == theirs[:-17]


# --- ours ----------------------------------------------------------------------------------------------------


@st.composite
def named_tensors(draw):
    shape = draw(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    dtype = draw(st.sampled_from(sorted(set(ckpt.DTYPES.values()))))
    array = draw(arrays(np.int8, shape, elements=st.integers(0, 1))).astype(numpy_dtype(dtype))
    return RawTensor(dtype, shape, array.reshape(-1).view(np.uint8))


@given(st.dictionaries(st.text(max_size=200), named_tensors(), max_size=5), st.sampled_from([8, 16, 2**29]))
def test_what_was_written_is_read_back(tmp_path_factory, named, limit):
    path = tmp_path_factory.mktemp("written") / "x.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ckpt, "SLICE", limit)
        assert write_ckpt(path, named.items()) == {name: raw.nbytes for name, raw in named.items()}
    back = read_ckpt(path)
    assert list(back) == list(named)
    for name, raw in named.items():
        read = back[name].read()
        assert (read.dtype, read.shape, read.data.tobytes()) == (raw.dtype, raw.shape, raw.data.tobytes())


def test_the_bytes_of_a_file(tmp_path):
    write_ckpt(tmp_path / "x.ckpt", [("ab", np.array([[1, 2, 3]], np.int8))])
    tensor = b"\x08\x01\x08\x03" + b"\x12\x04Int8" + b"\x1a\x03\x01\x02\x03"
    value = b"\x0a\x02ab" + b"\x12" + bytes([len(tensor)]) + tensor
    assert (tmp_path / "x.ckpt").read_bytes() == b"\x0a" + bytes([len(value)]) + value


def test_files_put_one_behind_the_other_are_one_file(tmp_path):
    for name in ("one", "two"):
        write_ckpt(tmp_path / name, [(name, np.arange(3))])
    joined = tmp_path / "both.ckpt"
    joined.write_bytes((tmp_path / "one").read_bytes() + (tmp_path / "two").read_bytes())
    assert list(read_ckpt(joined)) == ["one", "two"]


def test_tensors_of_another_file_stream_through(tmp_path, monkeypatch):
    array = np.arange(100, dtype=np.float32)
    write_safetensors(tmp_path / SINGLE, [("a", array)])
    stored = Checkpoint(tmp_path)["a"]
    monkeypatch.setattr(type(stored), "read", None)  # never whole
    monkeypatch.setattr(tensors, "CHUNK", 56)
    monkeypatch.setattr(ckpt, "SLICE", 120)
    write_ckpt(tmp_path / "x.ckpt", [("a", stored)])
    monkeypatch.undo()
    np.testing.assert_array_equal(arrays_of(tmp_path / "x.ckpt")["a"], array)


def test_a_file_can_be_read_and_written_by_its_owner(tmp_path):
    write_ckpt(tmp_path / "x.ckpt", [("a", np.ones(2))])
    assert os.stat(tmp_path / "x.ckpt").st_mode & 0o600 == 0o600


def test_a_dtype_without_a_name_leaves_no_file(tmp_path):
    with pytest.raises(OutputError, match=r"'a' is float8_e4m3fn, which \.ckpt cannot hold; write safetensors"):
        write_ckpt(tmp_path / "x.ckpt", [("a", np.ones(2).astype(numpy_dtype("float8_e4m3fn")))])
    assert list(tmp_path.iterdir()) == []


# --- packed int4 in safetensors ------------------------------------------------------------------------------


def test_safetensors_say_in_their_metadata_which_bytes_are_int4(tmp_path):
    packed = RawTensor(PACKED_INT4, (2, 3), np.arange(6, dtype=np.uint8))
    write_safetensors(tmp_path / SINGLE, [("a.weight", packed), ("b", np.ones(2, np.int8))], framework="ms")
    assert b'{"__metadata__":{"format":"ms","a.weight":"Int4"}' in (tmp_path / SINGLE).read_bytes()
    found = Checkpoint(tmp_path)
    assert (found["a.weight"].dtype, found["b"].dtype) == (PACKED_INT4, "int8")
    assert found["a.weight"].read().data.tolist() == list(range(6))


# --- folders -------------------------------------------------------------------------------------------------


def test_a_folder_of_ckpt_files_is_a_checkpoint(tmp_path):
    for name in ("one", "two"):
        write_ckpt(tmp_path / f"{name}.ckpt", [(name, np.arange(3))])
    assert list(Checkpoint(tmp_path).tensors) == ["one", "two"]
    write_ckpt(tmp_path / "three.ckpt", [("one", np.arange(3))])
    with pytest.raises(CheckpointError, match=r"three\.ckpt: 'one' is in another shard too"):
        Checkpoint(tmp_path)


def test_safetensors_come_first(tmp_path):
    write_safetensors(tmp_path / SINGLE, [("a", np.ones(2))])
    write_ckpt(tmp_path / "x.ckpt", [("b", np.ones(2))])
    assert list(Checkpoint(tmp_path).tensors) == ["a"]


# --- damage --------------------------------------------------------------------------------------------------


def field(number: int, content: bytes) -> bytes:
    return ckpt._field(number, content)


def value(tag=b"a", dims=b"\x08\x02", dtype=b"Float32", data=b"\0" * 8) -> bytes:
    """One Value of a file, any part of which may be wrong."""
    return field(1, field(1, tag) + field(2, dims + field(2, dtype) + field(3, data)))


HOSTILE = {
    "text": b"these are no weights at all",
    "zeros": bytes(64),
    "a pickle": b"\x80\x04\x95\x10",
    "a zip of pickles": b"PK\x03\x04rest",
    "a number without an end": b"\xff" * 64,
    "cut inside a number": b"\x0a\xff",
    "one byte": b"\x0a",
    "longer than the file": b"\x0a\x7f\x0a\x01a",
    "length of 2^62": b"\x0a" + ckpt._number(2**62) + b"\x0a\x01a",
    "an unknown field": field(9, b"abc"),
    "an unknown field in a value": field(1, field(1, b"a") + field(7, b"x")),
    "a number in place of a message": b"\x08\x01",
    "a map parameter": field(1, field(1, b"a") + field(3, b"")),
    "no tensor": field(1, field(1, b"a")),
    "a tensor longer than its value": field(1, field(1, b"a") + b"\x12\x20\x08\x02"),
    "name is not UTF-8": value(tag=b"\xff\xfe"),
    "name of a megabyte": value(tag=b"a" * 2**20),
    "unknown dtype": value(dtype=b"Float31"),
    "no dtype": value(dtype=b""),
    "too few bytes for the shape": value(dims=b"\x08\x03"),
    "negative size": value(dims=b"\x08" + ckpt._number(2**64 - 2)),
    "two negative sizes": value(dims=(b"\x08" + ckpt._number(2**64 - 1)) * 2),
    "sizes whose product is beyond 64 bits": value(dims=(b"\x08" + ckpt._number(2**62)) * 4),
    "the same name twice": value() + value(tag=b"b") + value(),
    "slices of two shapes": value() + value(dims=b"\x08\x04"),
    "slices of two dtypes": value() + value(dtype=b"Int8"),
    "a slice too many": value() + value(),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_a_one_line_error_that_names_it(content, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    for read in (lambda: read_ckpt(path), lambda: Checkpoint(tmp_path)):
        with pytest.raises(CheckpointError, match=r"x\.ckpt") as caught:
            read()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("length", range(1, 60))
def test_a_file_cut_short_anywhere(length, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes((value(tag=b"first") + value(tag=b"second"))[:-length])
    cut = len(value(tag=b"first"))
    if path.stat().st_size in (0, cut):
        assert len(read_ckpt(path)) == path.stat().st_size // cut  # between two tensors nothing tells
        return
    with pytest.raises(CheckpointError, match="not a MindSpore checkpoint, or damaged"):
        read_ckpt(path)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "x.ckpt"
    path.write_bytes(content)
    try:
        read_ckpt(path)
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.ckpt: No such file or directory"):
        read_ckpt(tmp_path / "absent.ckpt")
