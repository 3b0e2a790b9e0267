"""Every kind of calibration source gives the same tokens as a list of its texts, or an error."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gs_core import CalibrationError, calibration
from gs_core.calibration import files, tokens

TEXTS = ["The quick brown fox", 'says: "Grüß Gott",\nand jumps', "", "over the lazy dog. " * 4]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
RENDERED = "<user>Hi<assistant>Hello"
WANTED = 64


def by_byte(text):
    """One token for each byte."""
    return list(text.encode())


class ChatTokenizer:
    """A tokenizer of bytes with a chat template."""

    chat_template = "any"

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return by_byte(text)

    def apply_chat_template(self, messages, tokenize):
        assert not tokenize
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)


def stream(source, tokenizer=by_byte, wanted=10_000):
    return calibration.stream(source, wanted, tokenizer).tolist()


EXPECTED = by_byte("".join(TEXTS))


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def json_file(path, rows):
    path.write_text(json.dumps(rows, indent=2))
    return path


def csv_file(path, column, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["number", column], *enumerate(rows)])
    return path


# --- every kind gives the same tokens ------------------------------------------------------------------------


def test_a_list_of_strings():
    assert stream(TEXTS) == stream(tuple(TEXTS)) == EXPECTED


@pytest.mark.parametrize("field", ["text", "prompt", "content"])
def test_files_of_objects(field, tmp_path):
    rows = [{"number": 1, field: text} for text in TEXTS]
    assert stream(rows) == EXPECTED
    assert stream(jsonl(tmp_path / "a.jsonl", rows)) == EXPECTED
    assert stream(json_file(tmp_path / "a.json", rows)) == EXPECTED
    assert stream(csv_file(tmp_path / "a.csv", field, TEXTS)) == EXPECTED


def test_files_of_strings(tmp_path):
    assert stream(jsonl(tmp_path / "a.jsonl", TEXTS)) == EXPECTED
    assert stream(json_file(tmp_path / "a.json", TEXTS)) == EXPECTED


def test_a_json_file_of_objects_one_after_another_is_read_like_jsonl(tmp_path):
    assert stream(jsonl(tmp_path / "a.json", [{"text": text} for text in TEXTS])) == EXPECTED


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    for name, content in {"a.jsonl": '"ab"', "a.json": '["ab"]', "a.csv": "text\nab"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert stream(tmp_path / name) == by_byte("ab")


def test_a_folder_reads_each_file_by_its_kind(tmp_path):
    json_file(tmp_path / "a.json", [TEXTS[0]])
    jsonl(tmp_path / "b.jsonl", [TEXTS[1]])
    csv_file(tmp_path / "c.csv", "text", [TEXTS[2]])
    (tmp_path / "d.txt").write_text(TEXTS[3])
    assert sorted(stream(tmp_path)) == sorted(EXPECTED)


@pytest.mark.parametrize("row", [{"messages": CHAT}, {"conversations": SHAREGPT}, {"prompt": CHAT}, CHAT])
def test_chats_go_through_the_chat_template(row, tmp_path):
    expected = by_byte(RENDERED * 2)
    assert stream([row, row], ChatTokenizer()) == expected
    assert stream(jsonl(tmp_path / "a.jsonl", [row, row]), ChatTokenizer()) == expected
    assert stream(json_file(tmp_path / "a.json", [row, row]), ChatTokenizer()) == expected


def test_a_chat_is_preferred_to_the_prompt_that_begins_it():
    assert stream([{"prompt": "Hi", "messages": CHAT}], ChatTokenizer()) == by_byte(RENDERED)


def test_other_fields_of_a_message_reach_the_template():
    class Calling(ChatTokenizer):
        def apply_chat_template(self, messages, tokenize):
            return messages[0]["tool_calls"][0] + str(messages[0]["content"])

    row = [{"role": "assistant", "content": None, "tool_calls": ["call"], "name": None}]
    assert stream([row], Calling()) == by_byte("callNone")


def test_a_chat_without_a_template_is_refused(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ["text", {"messages": CHAT}])
    with pytest.raises(CalibrationError, match=r"a\.jsonl, line 2: the tokenizer has no chat template; give texts"):
        stream(path)


def test_a_chat_that_the_template_refuses_is_named():
    class Strict(ChatTokenizer):
        def apply_chat_template(self, messages, tokenize):
            raise ValueError("roles must alternate")

    with pytest.raises(CalibrationError, match=r"item 1 .*template refuses this chat \(ValueError: roles must alt"):
        stream([{"messages": CHAT}], Strict())


# --- token ids -----------------------------------------------------------------------------------------------


class Tensor:
    """Has only ``__array__``, like a tensor."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class Exporting:
    """Has only the two methods of DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


IDS = np.arange(12).reshape(2, 6)


@pytest.mark.parametrize(
    "source",
    [
        IDS.tolist(),
        Tensor(IDS),
        Tensor(IDS.astype(np.int32)),
        Exporting(IDS),
        {"input_ids": IDS},
        list(map(Tensor, IDS)),
    ],
    ids=["lists", "tensor", "int32", "dlpack", "encoding", "list of tensors"],
)
def test_token_ids_need_no_tokenizer(source):
    found = calibration.load(source, 2, 5, None)
    assert found.tolist() == IDS[:, :5].tolist()
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Tensor(np.ones(4)), "must be integers of one or two dimensions, got float64"),
        ([[1, 2], [3]], "give rows of one length"),
        ([1.5], "item 1 of the data: expected a text"),
        (b"bytes", "expected a text|must be integers"),
        (object(), "cannot read a object as text or token ids"),
        (iter(["a"]), "a list_iterator can be read only once; give a list"),
        ({"train": [], "test": []}, "a dict of train, test .*dataset\\['train'\\]"),
        (["a", None], "item 2 of the data: expected a text"),
        (["a\ud800"], r"item 1 .*'\\ud800' is half of a character"),
    ],
)
def test_objects_that_are_refused(source, message):
    with pytest.raises(CalibrationError, match=message):
        calibration.load(source, 1, 2, by_byte)


def test_a_tensor_of_another_device_says_so():
    class OnDevice:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with pytest.raises(CalibrationError, match=r"cannot read a OnDevice .*cuda:0.* on the CPU"):
        stream(OnDevice())


@pytest.mark.parametrize(
    "tokenizer", [lambda text: [1.5], lambda text: [[1]], lambda text: {"a": 1}, lambda text: 1 / 0]
)
def test_tokenizers_that_give_no_ids(tokenizer):
    with pytest.raises(CalibrationError, match=r"the tokenizer (returned|failed)"):
        stream(["a"], tokenizer)


def test_an_object_that_is_not_a_tokenizer():
    with pytest.raises(CalibrationError, match="a int is not a tokenizer"):
        stream(["a"], 3)


def test_an_npz_file_named_npy(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, IDS)
    with pytest.raises(CalibrationError, match=r"a\.npy: not a \.npy array of tokens"):
        stream(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(" * 3000, "(-5,)", "(" + "9" * 5000 + ",)"])
def test_npy_headers_with_impossible_shapes_are_refused(shape, tmp_path):
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header)
    with pytest.raises(CalibrationError, match=r"a\.npy: not a \.npy array of tokens"):
        stream(tmp_path / "a.npy")


def test_an_npy_header_of_gigabytes_is_not_read(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little"))
    os.truncate(tmp_path / "a.npy", 2**33)
    with pytest.raises(CalibrationError, match="its header claims 4294967295 bytes"):
        stream(tmp_path / "a.npy")


# --- no more than is needed is read --------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch):
    """Counts the characters or bytes that are read."""
    counted = []

    class Counting:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def read(self, size=-1):
            counted.append(found := self.file.read(size))
            return found

        def readline(self, size=-1):
            counted.append(found := self.file.readline(size))
            return found

    def opening(*arguments, **keywords):
        return Counting(open(*arguments, **keywords))

    monkeypatch.setattr(files, "open", opening, raising=False)
    return lambda: sum(map(len, counted))


LIMIT = WANTED * tokens.CHARACTERS_PER_TOKEN


def test_only_the_beginning_of_a_big_file_is_read(tmp_path, read):
    (tmp_path / "a.txt").write_text("x" * 50 * LIMIT)
    assert len(stream(tmp_path / "a.txt", wanted=WANTED)) == LIMIT
    assert read() == LIMIT


def test_only_the_beginning_of_a_big_folder_is_read(tmp_path, read):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text("x" * 50 * LIMIT)
    assert len(stream(tmp_path, wanted=WANTED)) == LIMIT
    assert read() == LIMIT


def test_a_folder_is_read_until_there_are_enough_tokens(tmp_path, read):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text("x" * 10)
    assert len(stream(tmp_path, wanted=WANTED)) == 70
    assert read() == 70


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_only_the_beginning_of_a_big_json_file_is_read(name, tmp_path, read):
    write = json_file if name == "a.json" else jsonl
    path = write(tmp_path / name, ["x" * 100] * 20_000)
    assert len(stream(path, wanted=WANTED)) == 100
    assert read() <= files.READ_CHARACTERS


def test_only_the_beginning_of_a_long_row_is_tokenized():
    assert len(stream(["x" * 50 * LIMIT], wanted=WANTED)) == LIMIT


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch, read):
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(files, "READ_CHARACTERS", 100)
    for name in ("a.jsonl", "a.csv", "a.json"):
        (tmp_path / name).write_text('["' + "x" * 100_000)
        with pytest.raises(CalibrationError, match=rf"{name}, (line 1: longer than 1000 bytes|item 1: not JSON)"):
            stream(tmp_path / name)
    assert read() < 10_000


def test_a_json_value_longer_than_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READ_CHARACTERS", 3)
    assert stream(json_file(tmp_path / "a.json", [{"text": text} for text in TEXTS])) == EXPECTED


# --- what is not read ----------------------------------------------------------------------------------------


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "pipe.npy")
    for name in (tmp_path / "pipe.txt", tmp_path / "pipe.npy", "/dev/zero"):
        with pytest.raises(CalibrationError, match=r"not a file or folder \(a pipe or device\?\)"):
            stream(name)
    (tmp_path / "a.txt").write_text("ab")
    assert stream(tmp_path) == by_byte("ab"), "pipes in a folder are skipped"
    with pytest.raises(CalibrationError, match="not a regular file"), files.opened(tmp_path / "pipe.txt"):
        pass


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_path_is_not_the_working_directory(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("ab")
    with pytest.raises(CalibrationError, match="the path of the text is empty"):
        stream(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "text", "item 1: not JSON"),
        ("a.json", '["a" "b"]', "item 2: not JSON .a comma is missing"),
        ("a.json", '["a", "b"', "cut short: the list has no end"),
        ("a.json", '["a", ', "item 2: not JSON .Expecting value"),
        ("a.json", "[" * 100_000, "item 1: not JSON .nested too deeply"),
        ("a.json", '["a", {"label": 1}]', "item 2: expected a text"),
        ("a.csv", "number,label\n1,2\n", "no column is named 'text', 'prompt' or 'content'; it has number, label"),
        ("a.csv", "", "no column is named .* it has none"),
        ("a.csv", "number,text\n1,a\n2\n", "line 3: 'text' is null"),
        ("a.csv", 'text\n"a"b\n', "line 2: not CSV"),
        ("a.csv", "text\n" + "x" * 200_000, "line 2: not CSV .field larger than"),
    ],
)
def test_damaged_files_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(CalibrationError, match=rf"{name}(, |: ).*{message}|{name}, {message}"):
        stream(tmp_path / name)


def test_a_damaged_file_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[\xff]")
    with pytest.raises(CalibrationError, match=r"a\.json: not UTF-8 text"):
        stream(tmp_path)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(TEXT, max_size=6), st.integers(1, 200))
def test_any_texts_survive_json(texts, wanted):
    expected = stream(texts, wanted=wanted)
    with tempfile.TemporaryDirectory() as folder:
        assert stream(jsonl(Path(folder) / "a.jsonl", texts), wanted=wanted) == expected
        assert stream(json_file(Path(folder) / "a.json", texts), wanted=wanted) == expected


@given(st.binary(max_size=60), st.sampled_from([".txt", ".json", ".jsonl", ".csv", ".npy", ".parquet", ".arrow"]))
def test_any_bytes_are_tokens_or_an_error(content, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        try:
            found = calibration.stream(path, WANTED, by_byte)
        except CalibrationError as error:
            assert path.name in str(error)
        else:
            assert np.issubdtype(found.dtype, np.integer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "messages", "role", "content", "from", "value"]), inner, max_size=3)
    ),
)


@given(st.lists(JSON, max_size=4))
def test_any_json_is_text_or_an_error_that_names_its_line(rows):
    with tempfile.TemporaryDirectory() as folder:
        try:
            calibration.stream(jsonl(Path(folder) / "a.jsonl", rows), WANTED, ChatTokenizer())
        except CalibrationError as error:
            assert "a.jsonl, line" in str(error)


@given(st.integers(0, 150), st.integers(0, 255))
def test_a_changed_byte_of_an_npy_file_gives_tokens_or_an_error(place, byte):
    buffer = io.BytesIO()
    np.save(buffer, IDS)
    content = bytearray(buffer.getvalue())
    content[place] = byte
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.npy").write_bytes(content)
        try:
            found = calibration.stream(Path(folder) / "a.npy", WANTED, by_byte)
        except CalibrationError:
            return
        assert np.issubdtype(found.dtype, np.integer)
        assert found.ndim in (1, 2)
