"""Evaluation sets, as their authors' files have them, become prompts and tokens."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from gs_compat.ceval import SUBJECTS
from gs_compat.datasets import read
from gs_compat.reading import READERS, Record, wikitext
from gs_compat.samples import Encoder


@dataclass
class Tokenizer:
    """One token for each character; 1 begins, 2 ends where it is told to."""

    ends: bool = False
    pad_token_id: int | None = 0
    eos_token_id: int | None = 2
    asked: list = field(default_factory=list)

    def encode(self, text, add_special_tokens=True):
        ids = [ord(letter) for letter in text]
        return [1, *ids, *([2] if self.ends else [])] if add_special_tokens else ids

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": self.encode(text, add_special_tokens)}


def ids(*parts):
    return [n for part in parts for n in ([part] if isinstance(part, int) else map(ord, part))]


@pytest.fixture
def squad(tmp_path):
    first = {"question": "Who?", "answers": [{"text": "Ada"}, {"text": "Ada L."}]}
    second = {"question": "When?", "answers": [{"text": "1843"}]}
    paragraphs = [{"context": "Ada wrote.", "qas": [first, second]}, {"context": "Bob.", "qas": [second]}]
    path = tmp_path / "train-v1.1.json"
    path.write_text(json.dumps({"data": [{"title": "x", "paragraphs": paragraphs}]}))
    return path


def test_squad_takes_each_paragraphs_first_question_and_answer(squad):
    first, second = READERS["squad1.1"](squad)
    assert first == Record(
        "Read the passage and answer the question below.\n\n### Instruction:\nAda wrote.\n\n### Input:\nWho?\n\n"
        "### Response:",
        "Ada",
    )
    assert second.answer == "1843"


def test_json_lines_sets(tmp_path):
    (tmp_path / "boolq.jsonl").write_text('{"title": "T", "passage": "P", "question": "q?", "answer": true}\n\n')
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1+1?", "answer": "It is\\n#### 2"}\n')
    (tmp_path / "own.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": "World"}\n')
    (boolq,) = READERS["boolq"](tmp_path / "boolq.jsonl")
    assert boolq.prompt.endswith("### Passage:\nT -- P\n### Question:\nq?\n### Answer:")
    assert boolq.answer == "yes"
    assert list(READERS["gsm8k"](tmp_path / "gsm8k.jsonl")) == [Record("1+1?", "2")]
    assert [record.prompt for record in READERS["calibrate"](tmp_path / "own.jsonl")] == ["Hello", "World"]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "Hello"}\n{"prompt"')
    with pytest.raises(ValueError, match=r"own\.jsonl, line 2: not JSON"):
        list(READERS["calibrate"](tmp_path / "own.jsonl"))


def test_ceval_goes_round_the_subjects_that_are_there(tmp_path, caplog):
    folder = tmp_path / "val"
    folder.mkdir()
    header = "id,question,A,B,C,D,answer\n"
    (folder / "law_val.csv").write_text(header + '0,"一,二?",甲,乙,丙,丁,B\n1,三?,甲,乙,丙,丁,C\n', encoding="utf-8")
    (folder / "logic_val.csv").write_text(header + "0,四?,甲,乙,丙,丁,A\n", encoding="utf-8")
    found = list(READERS["ceval"](folder))
    assert [(record.subject, record.answer) for record in found] == [("逻辑学", "A"), ("法学", "B"), ("法学", "C")]
    assert found[1].prompt.endswith("一,二?\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：")
    assert len(SUBJECTS) == 52
    assert "50 of C-Eval's 52 subjects have no file" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"marxism_test\.csv"):
        list(READERS["ceval"](tmp_path / "test"))


def test_wikitext_is_running_text_without_headings(tmp_path):
    text = (
        '= T = \n \n The " cat " ( 1 @,@ 000 kg ) sat , well @-@ fed . \n It \'s mine . \n \n = = Two = = \n \n End .'
    )
    (tmp_path / "wiki.test.tokens").write_text(text)
    found = wikitext(tmp_path / "wiki.test.tokens")
    assert found == 'The "cat" (1,000 kg) sat, well-fed.\nIt\'s mine.\n\nEnd.'


def test_wikitext_becomes_whole_chunks(tmp_path):
    (tmp_path / "wiki.test.tokens").write_text("abcdefgh")
    found = read("wikitext2", tmp_path / "wiki.test.tokens", Encoder(Tokenizer(), "train", 5), max_new_tokens=1)
    assert [sample.input_ids.tolist() for sample in found] == [ids(1, "abc"), ids("defg")]
    assert found[0].labels is None
    with pytest.raises(ValueError, match="leaves no room"):
        read("wikitext2", tmp_path / "wiki.test.tokens", Encoder(Tokenizer(), "train", 5), max_new_tokens=5)


@pytest.mark.parametrize("ends", [False, True], ids=["tokenizer does not end", "tokenizer ends"])
def test_training_samples_hide_the_prompt(ends):
    found = Encoder(Tokenizer(ends), "train", 16, -100).encode(Record("ab", "cd"))
    assert found.input_ids.tolist() == ids(1, "abcd", 2)
    assert found.labels.tolist() == [-100, -100, -100, *ids("cd", 2)]
    assert found.input_ids.dtype == found.labels.dtype == np.int32


@pytest.mark.parametrize("ends", [False, True], ids=["tokenizer does not end", "tokenizer ends"])
def test_evaluation_samples_do_not_end(ends):
    found = Encoder(Tokenizer(ends), "eval", 16).encode(Record("ab", "cd"))
    assert found.input_ids.tolist() == ids(1, "ab")
    assert found.labels.tolist() == ids("cd")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_samples_are_cut_and_filled_to_the_length(mode):
    encoder = Encoder(Tokenizer(), mode, 4, -100, need_pad=True)
    assert encoder.encode(Record("abcdefgh", "ijklm")).input_ids.tolist() == ids(1, "abc")
    short = encoder.encode(Record("a", ""))
    assert short.input_ids.tolist() == (ids(1, "a", 2, 0) if mode == "train" else ids(1, "a", 0, 0))
    assert short.labels.tolist() == ([-100, -100, 2, -100] if mode == "train" else [0, 0, 0, 0])


def test_the_first_samples_are_taken(squad):
    encoder = Encoder(Tokenizer(), "eval", 16)
    assert len(read("squad1.1", squad, encoder, n_samples=1)) == 1
    assert len(read("squad1.1", squad, encoder, n_samples=-1)) == 2


def test_what_cannot_be_is_an_error():
    with pytest.raises(ValueError, match="train, test, eval"):
        Encoder(Tokenizer(), "training", 16)
    with pytest.raises(ValueError, match="no pad token"):
        Encoder(Tokenizer(pad_token_id=None), "eval", 16, need_pad=True)
