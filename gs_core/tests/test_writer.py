"""Writing files: to the byte, durably, and whole or not at all."""

import errno
import json
import os
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gs_core import CheckpointError, OutputError
from gs_core.arrays import RawTensor, from_raw, numpy_dtype, to_raw
from gs_core.storage import (
    DerivedTensor,
    copy_file,
    read_header,
    replacing,
    write_json,
    write_safetensors,
    write_text,
    writer,
)

DTYPES = ["float32", "bfloat16", "float16", "int8", "uint8", "int32", "int64", "bool"]


@st.composite
def tensors(draw):
    shape = draw(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    return draw(arrays(np.int8, shape, elements=st.integers(0, 1))).astype(numpy_dtype(draw(st.sampled_from(DTYPES))))


@given(st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__"), tensors(), max_size=5))
def test_what_was_written_is_read_back(tmp_path_factory, named):
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    sizes = write_safetensors(path, named.items())
    assert sizes == {name: array.nbytes for name, array in named.items()}
    header = read_header(path)
    assert sorted(header) == sorted(named)
    for name, array in named.items():
        back = from_raw(header[name].read())
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)


def test_the_bytes_of_a_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [("b", np.array([1, 2], np.int16)), ("a", np.array(3, np.int8))])
    header = (
        b'{"__metadata__":{"format":"pt"},"b":{"dtype":"I16","shape":[2],"data_offsets":[0,4]},'
        b'"a":{"dtype":"I8","shape":[],"data_offsets":[4,5]}}'
    )
    header += b" " * (-len(header) % 8)
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + bytes([1, 0, 2, 0, 3])


def test_tensors_of_another_file_stream_through(tmp_path, monkeypatch):
    array = np.arange(100, dtype=np.float32)
    write_safetensors(tmp_path / "source", [("a", array)])
    stored = read_header(tmp_path / "source")["a"]
    monkeypatch.setattr(type(stored), "read", None)  # never whole
    derived = DerivedTensor("b", "float32", (100,), lambda: to_raw(array * 2))
    write_safetensors(tmp_path / "target", [("a", stored), ("b", derived), ("c", to_raw(array * 3))])
    monkeypatch.undo()
    back = {name: from_raw(tensor.read()) for name, tensor in read_header(tmp_path / "target").items()}
    assert all(np.array_equal(back[name], array * factor) for factor, name in enumerate("abc", 1))


# --- whole or not at all -------------------------------------------------------------------------------------


def failing(error):
    """A tensor whose bytes cannot be had."""

    def make() -> RawTensor:
        raise error

    return DerivedTensor("late", "float32", (2,), make)


@pytest.mark.parametrize("before", [None, "the old content"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), CheckpointError("cut short")])
def test_a_source_that_fails_leaves_no_file(error, before, tmp_path):
    path = tmp_path / "x.safetensors"
    if before:
        path.write_text(before)
    with pytest.raises(type(error)):
        write_safetensors(path, [("early", np.ones(1000)), ("late", failing(error))])
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == ({path.name: before} if before else {})


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_says_so_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 3 * 2**19))
    with pytest.raises(OutputError) as caught:
        write_safetensors(tmp_path / "x.safetensors", [("a", failing(OSError(errno.ENOSPC, "No space left")))])
    assert str(caught.value) == (
        f"the disk is full: could not write {tmp_path}/x.safetensors (1.5 MiB free). "
        "Make room and run the same command again; finished blocks are kept"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_late_leaves_the_old_file(call, tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("old")

    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match=r"could not write .*config\.json: Input/output error"):
        write_json(path, {})
    monkeypatch.undo()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"config.json": "old"}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match=r"could not write .*: No such file or directory"):
        write_text(tmp_path / "absent" / "x", "")


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_target(tmp_path):
    write_safetensors(tmp_path / "source", [("a", np.ones(2))])
    stored = read_header(tmp_path / "source")["a"]
    (tmp_path / "source").unlink()
    with pytest.raises(CheckpointError, match="source"):
        write_safetensors(tmp_path / "target", [("a", stored)])
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_on_disk_before_its_name_is(tmp_path, monkeypatch):
    events, replace = [], os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: events.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    write_text(tmp_path / "x", "content")
    assert events == ["x.partial", "replace", tmp_path.name]


def test_small_files(tmp_path):
    write_text(tmp_path / "text", "grün\n")
    write_json(tmp_path / "json", {"name": "grün", "list": [1]})
    copy_file(tmp_path / "text", tmp_path / "copy")
    assert (tmp_path / "text").read_bytes() == "grün\n".encode()
    assert (tmp_path / "json").read_text(encoding="utf-8").endswith('"grün",\n  "list": [\n    1\n  ]\n}\n')
    assert json.loads((tmp_path / "json").read_text(encoding="utf-8")) == {"name": "grün", "list": [1]}
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "text").read_bytes()
    with replacing(tmp_path / "text") as file:
        file.write(b"new")
        assert (tmp_path / "text").read_text(encoding="utf-8") == "grün\n"
    assert (tmp_path / "text").read_text() == "new"
