"""Calibration tokens from every kind of source: the same ones every time, or an error that says what is missing."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gs_core import CalibrationError, calibration
from gs_core.calibration.tokens import CHARACTERS_PER_TOKEN, READ_RATIO, TOKENS_PER_BATCH


def by_byte(text):
    """One token for each byte."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def load(source, samples=2, seq_len=4):
    return calibration.load(source, samples, seq_len, by_byte)


def text(tokens):
    return bytes(int(token) for row in tokens for token in row).decode()


# --- sources -------------------------------------------------------------------------------------------------


def test_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh")
    tokens = load(tmp_path / "a.txt")
    assert tokens.tolist() == [[97, 98, 99, 100], [101, 102, 103, 104]]
    assert tokens.dtype == np.int64
    assert tokens.flags.c_contiguous
    assert (load(str(tmp_path / "a.txt")) == tokens).all()


def test_a_jsonl_file_under_any_of_its_names(tmp_path):
    rows = [{"text": "ab"}, {"prompt": "cd"}, {"content": "ef"}, "gh", {"text": "ij", "label": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:2]) + "\n\n")
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("\n".join(json.dumps(row) for row in rows[2:]))
    assert text(load(tmp_path / "a.jsonl")) == "abcdefgh"


BAD_LINES = {
    "{nonsense": "not JSON",
    "[" * 1_000_000: "not JSON",
    '{"text": ' + "9" * 5000 + "}": "not JSON",
    "[]": "expected a text, or an object with 'text'",
    "3": "expected a text, or an object with 'text'",
    '{"label": 1}': "expected a text, or an object with 'text'",
    "null": "expected a text, or an object with 'text'",
    '{"text": null}': "'text' is null",
    '{"text": 3}': "'text' is a int",
    '{"text": "\\ud800"}': r"'\\ud800' is half of a character",
    '{"messages": []}': "'messages' has no messages",
    '{"messages": [{"role": "user"}]}': "'messages', message 1: expected 'role' and 'content'",
    '{"messages": [{"role": "user", "content": "a"}, "b"]}': "message 2: expected 'role' and 'content'",
    '{"conversations": [{"from": 1, "value": "a"}]}': "message 1: expected 'role' and 'content', or 'from' and 'value'",
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_jsonl_line_is_named(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "ab"}}\n\n{line}\n')
    with pytest.raises(CalibrationError, match=rf"a\.jsonl, line 3: .*{message}|a\.jsonl, line 3: {message}"):
        load(tmp_path / "a.jsonl")


def test_a_jsonl_file_that_is_not_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ab"}\n\xff\n')
    with pytest.raises(CalibrationError, match=r"a\.jsonl, line 2: not UTF-8 text"):
        load(tmp_path / "a.jsonl")


def test_a_folder_of_texts_in_an_order_that_is_not_the_alphabets(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in "abcdefgh":
        (tmp_path / ("deep" if name > "d" else "") / f"{name}.txt").write_text(name)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    found = text(load(tmp_path))
    assert sorted(found) == list("abcdefgh")
    assert found != "abcdefgh"
    assert text(load(tmp_path)) == found


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_token_arrays(dtype, tmp_path):
    array = np.arange(12, dtype=dtype)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy", str(tmp_path / "a.npy")):
        assert load(source).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert load(source).dtype == np.int64


def test_rows_of_tokens_stay_rows():
    assert load(np.arange(18).reshape(3, 6), samples=3).tolist() == [[0, 1, 2, 3], [6, 7, 8, 9], [12, 13, 14, 15]]


def test_rows_that_are_too_short_are_joined():
    assert load(np.arange(9).reshape(3, 3)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("array", [np.ones(8), np.ones((2, 2, 2), int), np.array(["a"])])
def test_arrays_that_are_no_tokens(array):
    with pytest.raises(CalibrationError, match="must be integers of one or two dimensions"):
        load(array)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
def test_a_damaged_npy_file(content, tmp_path):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"a\.npy: not a \.npy array of tokens"):
        load(tmp_path / "a.npy")


def test_an_npy_file_of_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(CalibrationError, match=r"not a \.npy array of tokens"):
        load(tmp_path / "a.npy")


def test_a_source_that_is_not_there(tmp_path):
    for name in ("a.txt", "folder", "a.jsonl", "a.npy"):
        with pytest.raises(CalibrationError, match=name):
            load(tmp_path / name)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"ab\0cd"])
def test_a_file_that_is_no_text(content, tmp_path):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(CalibrationError, match="not UTF-8 text"):
        load(tmp_path / "a.bin")


# --- windows -------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 12), st.integers(2, 9))
def test_windows_are_spread_evenly_and_never_overlap(length, samples, seq_len):
    tokens = np.arange(length)
    possible = length // seq_len
    if possible < samples:
        with pytest.raises(CalibrationError, match=f"has {possible} samples of {seq_len} tokens, .* {samples};"):
            calibration.windows(tokens, samples, seq_len)
        return
    found = calibration.windows(tokens, samples, seq_len)
    assert found.shape == (samples, seq_len)
    assert (np.diff(found, axis=1) == 1).all()
    starts = found[:, 0]
    assert (np.diff(starts) >= seq_len).all()
    assert starts[0] == 0
    assert starts[-1] >= (possible - possible / samples - 1) * seq_len, "to the end of the text"
    assert samples == 1 or np.ptp(np.diff(starts)) <= seq_len


def test_too_little_text_says_how_much_there_is():
    with pytest.raises(CalibrationError) as caught:
        load(np.arange(7))
    assert str(caught.value) == (
        "the calibration data has 1 samples of 4 tokens, the recipe needs 2; "
        "give more text, or lower `samples=` or `seq_len=`"
    )


def test_no_more_text_is_read_than_is_needed(tmp_path):
    read = []

    def tokenize(piece):
        read.append(len(piece))
        return by_byte(piece)

    (tmp_path / "a.txt").write_text("x" * 10_000)
    calibration.load(tmp_path / "a.txt", 2, 4, tokenize)
    assert read == [2 * 4 * READ_RATIO * CHARACTERS_PER_TOKEN]


# --- use -----------------------------------------------------------------------------------------------------


def test_ids_must_be_in_the_vocabulary():
    calibration.check(np.array([[0, 9]]), 10)
    for wrong in ([[0, 10]], [[-1, 3]]):
        with pytest.raises(CalibrationError, match=r"the model has 10\. Tokenize the data"):
            calibration.check(np.array(wrong), 10)


@given(st.integers(1, 40), st.integers(2, 3000))
def test_batches_hold_every_row_in_order(samples, seq_len):
    tokens = np.arange(samples)[:, None] + np.zeros(seq_len, int)
    batches = calibration.batches(tokens)
    assert (np.concatenate(batches) == tokens).all()
    assert all(len(batch) == 1 or batch.size <= TOKENS_PER_BATCH for batch in batches)
    assert len(batches) <= -(-samples // max(1, TOKENS_PER_BATCH // seq_len))
