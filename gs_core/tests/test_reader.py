"""Reading checkpoints: what is whole is read to the byte, what is not is named and refused."""

import json
import os

import numpy as np
import pytest

from gs_core import CheckpointError, memory
from gs_core.arrays import from_raw, to_raw
from gs_core.storage import (
    INDEX,
    SINGLE,
    Checkpoint,
    DerivedTensor,
    let_go,
    read_header,
    reader,
    tensors,
    write_safetensors,
)

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def file_of(header, data=b"\0" * 8):
    """The bytes of a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), data_offsets=(0, 8)):
    return file_of({"a": {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}})


HOSTILE = {
    "empty": b"",
    "seven bytes": b"\x01" * 7,
    "header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "header length of 2^63": (2**63).to_bytes(8, "little") + b"{}",
    "header over the limit": (reader.HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}",
    "not JSON": file_of(b"{nonsense"),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "not an object": file_of(b"[1, 2]"),
    "a million brackets": file_of(b"[" * 1_000_000),
    "a number of ten thousand digits": file_of(b'{"a": ' + b"9" * 10_000 + b"}"),
    "entry is a number": file_of({"a": 1}),
    "entry is a list": file_of({"a": []}),
    "entry is null": file_of({"a": None}),
    "no dtype": file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "unknown dtype": entry(dtype="F31"),
    "dtype is a list": entry(dtype=["F32"]),
    "negative size": entry(shape=(-2,)),
    "two negative sizes": entry(shape=(-1, -2)),
    "size is a float": entry(shape=(2.0,)),
    "size is a truth value": entry(shape=(True, 2)),
    "sizes are text": entry(shape="2"),
    "sizes are null": entry(shape=None),
    "sizes whose product is beyond 64 bits": entry(shape=(2**40, 2**40)),
    "sizes that overflow to the right one": entry(shape=(2**63, 2, 2)),
    "too few bytes for the shape": entry(shape=(3,)),
    "offsets are text": entry(data_offsets=("0", "8")),
    "offsets are null": entry(data_offsets=(None, None)),
    "three offsets": entry(data_offsets=(0, 8, 16)),
    "no offsets": entry(data_offsets=()),
    "negative offset": entry(data_offsets=(-8, 0)),
    "offsets the wrong way round": entry(data_offsets=(8, 0)),
    "offsets beyond the file": entry(data_offsets=(8, 16)),
    "huge offsets": entry(data_offsets=(2**70, 2**70 + 8)),
    "data cut short": file_of(GOOD, b"\0" * 7),
    "overlapping tensors": file_of(GOOD | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}),
    "the same bytes twice": file_of(GOOD | {"b": GOOD["a"]}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_a_one_line_error_that_names_it(content, tmp_path):
    path = tmp_path / SINGLE
    path.write_bytes(content)
    for read in (lambda: read_header(path), lambda: Checkpoint(tmp_path)):
        with pytest.raises(CheckpointError, match=SINGLE) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_a_good_file_is_read_to_the_byte(tmp_path):
    data = bytes(range(14))
    header = {
        "late": {"dtype": "BF16", "shape": [1, 3], "data_offsets": [8, 14]},
        "__metadata__": {"format": "pt"},
        "early": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    (tmp_path / SINGLE).write_bytes(file_of(header, data))
    checkpoint = Checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["early", "late"], "in the order of the file"
    late = checkpoint["late"].read()
    assert (late.dtype, late.shape, late.data.tobytes()) == ("bfloat16", (1, 3), data[8:])
    assert checkpoint.nbytes == 14
    assert "late" in checkpoint
    assert "other" not in checkpoint


@pytest.mark.parametrize("shape", [[], [0], [3, 0, 2]])
def test_scalars_and_empty_tensors(shape, tmp_path):
    nbytes = 4 * int(np.prod(shape))
    (tmp_path / SINGLE).write_bytes(file_of({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}}))
    raw = Checkpoint(tmp_path)["a"].read()
    assert from_raw(raw).shape == tuple(shape)
    assert raw.nbytes == nbytes


@pytest.mark.parametrize("names", [("empty", "full"), ("full", "empty")])
def test_an_empty_tensor_overlaps_nothing(names, tmp_path):
    entries = {
        "empty": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        "full": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    (tmp_path / SINGLE).write_bytes(file_of({name: entries[name] for name in names}))
    assert sorted(Checkpoint(tmp_path).tensors) == ["empty", "full"]


def test_bytes_stream_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "CHUNK", 5)
    array = np.arange(12, dtype=np.uint8)
    write_safetensors(tmp_path / SINGLE, [("a", array)])
    stored = Checkpoint(tmp_path)["a"]
    assert [len(piece) for piece in stored.chunks()] == [5, 5, 2]
    assert from_raw(stored.read()).tolist() == array.tolist()


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / SINGLE
    path.write_bytes(file_of(GOOD))
    stored = read_header(path)["a"]
    path.write_bytes(file_of(GOOD, b"\0" * 3))
    with pytest.raises(CheckpointError, match="ended while reading 'a'; copy the file again"):
        stored.read()


def test_a_file_that_vanishes_before_it_is_read(tmp_path):
    path = tmp_path / SINGLE
    path.write_bytes(file_of(GOOD))
    stored = read_header(path)["a"]
    path.unlink()
    with pytest.raises(CheckpointError, match=SINGLE):
        stored.read()


# --- shards --------------------------------------------------------------------------------------------------


def shards(folder, weight_map, **files):
    """A folder with an index and files of one tensor each, named as the tensor is."""
    for name in files.values():
        write_safetensors(folder / name, [(tensor, np.ones(2, np.float32)) for tensor, n in files.items() if n == name])
    text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    (folder / INDEX).write_text(text)
    return folder


def test_shards_are_one_checkpoint(tmp_path):
    names = {"a": "one.safetensors", "b": "two.safetensors"}
    checkpoint = Checkpoint(shards(tmp_path, names, **names))
    assert sorted(checkpoint.tensors) == ["a", "b"]
    assert [path.name for path in checkpoint.files] == ["one.safetensors", "two.safetensors"]


def test_shards_without_an_index_are_found(tmp_path):
    shards(tmp_path, {}, a="one.safetensors", b="two.safetensors")
    (tmp_path / INDEX).unlink()
    assert sorted(Checkpoint(tmp_path).tensors) == ["a", "b"]


@pytest.mark.parametrize(
    "outside",
    ["../secret.safetensors", "/etc/passwd", "sub/one.safetensors", "", ".", "..", 7, None, ["one.safetensors"]],
)
def test_an_index_may_not_point_outside_the_folder(outside, tmp_path):
    write_safetensors(tmp_path / "secret.safetensors", [("a", np.ones(2, np.float32))])
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    write_safetensors(folder / "sub" / "one.safetensors", [("a", np.ones(2, np.float32))])
    with pytest.raises(CheckpointError, match="'a' points outside the folder"):
        Checkpoint(shards(folder, {"a": outside}))


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', "nonsense", "[" * 1_000_000, "\ud800"]
)
def test_an_index_that_is_none(index, tmp_path):
    (tmp_path / INDEX).write_text(index, errors="surrogatepass")
    with pytest.raises(CheckpointError, match="not an index of shards"):
        Checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"names two\.safetensors, which is not there"):
        Checkpoint(shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}, a="one.safetensors"))


@pytest.mark.parametrize("name", ["sub", "nul\0byte"])
def test_a_shard_must_be_a_file(name, tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(CheckpointError, match="which is not there"):
        Checkpoint(shards(tmp_path, {"a": name}))


def test_a_tensor_in_two_shards(tmp_path):
    for name in ("one", "two"):
        write_safetensors(tmp_path / f"{name}.safetensors", [("a", np.ones(2, np.float32))])
    with pytest.raises(CheckpointError, match=r"two\.safetensors: 'a' is in another shard too"):
        Checkpoint(tmp_path)


def test_a_tensor_that_no_shard_holds(tmp_path):
    with pytest.raises(CheckpointError, match="names 'b', which no shard holds"):
        Checkpoint(shards(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"}, a="one.safetensors"))


# --- folders -------------------------------------------------------------------------------------------------


def test_a_pickle_is_never_loaded(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle, which is never loaded"):
        Checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors or \*\.ckpt file$"):
        Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint(tmp_path / "absent")


def test_an_unknown_tensor_is_named(toy):
    with pytest.raises(CheckpointError, match=r"no tensor named 'nothing\.weight'"):
        Checkpoint(toy)["nothing.weight"]


def test_replacing_leaves_the_original_as_it_was(toy):
    checkpoint, value = Checkpoint(toy), np.ones((2, 3), np.float32)
    derived = DerivedTensor("new", "float32", (2, 3), lambda: to_raw(value))
    other = checkpoint.replacing(["norm.weight"], {"new": derived})
    assert "norm.weight" in checkpoint
    assert "new" not in checkpoint
    assert "norm.weight" not in other
    assert other["new"].nbytes == 24
    assert b"".join(other["new"].chunks()) == value.tobytes()
    assert other.nbytes == checkpoint.nbytes - checkpoint["norm.weight"].nbytes + 24


@pytest.mark.skipif(not memory.STATUS.is_file(), reason="the system does not tell how much is resident")
def test_what_was_looked_at_of_a_mapped_tensor_can_be_let_go(tmp_path):
    table = np.arange(2**24, dtype=np.float32)  # 64 MiB
    write_safetensors(tmp_path / SINGLE, [("table", table)])
    mapped = Checkpoint(tmp_path)["table"].map()
    seen = from_raw(mapped)
    total, before = seen.sum(dtype=np.float64), memory.now()
    let_go(mapped)
    assert before - memory.now() > 48 * 2**20
    assert seen.sum(dtype=np.float64) == total


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype": "F32", "shape": [' + "9" * 4000 + '], "data_offsets": [0, 4]}',
        '{"dtype": "F32", "shape": [1], "data_offsets": [0, ' + "9" * 4000 + "]}",
        '{"dtype": "F32", "shape": [' + ",".join(["9"] * 10**5) + '], "data_offsets": [0, 4]}',
        '{"dtype": "F32", "shape": ' + "[" * 900 + "]" * 900 + ', "data_offsets": [0, 4]}',
        '{"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 4]}',
        "[" * 10**6,
    ],
    ids=["shape", "offset", "dimensions", "deep", "digits", "deep header"],
)
def test_a_header_with_huge_numbers_or_deep_lists_is_refused(entry, tmp_path):
    header = ('{"a": ' + entry + "}").encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_a_shard_that_is_a_pipe_is_refused_without_waiting(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(tmp_path / name)
