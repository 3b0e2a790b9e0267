"""Questions and answers from the files of evaluation sets, as their authors distribute them."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gs_compat.ceval import SUBJECTS, question
from gs_compat.log import logger


@dataclass(frozen=True)
class Record:
    """One question: what the model is given, what it should say, and, for C-Eval, the subject."""

    prompt: str
    answer: str
    subject: str = ""


def squad(path: Path) -> Iterator[Record]:
    """SQuAD 1.1: the first question of each paragraph, and its first answer."""
    for article in _json(path)["data"]:
        for paragraph in article["paragraphs"]:
            first = paragraph["qas"][0]
            prompt = (
                "Read the passage and answer the question below.\n\n### Instruction:\n"
                f"{paragraph['context']}\n\n### Input:\n{first['question']}\n\n### Response:"
            )
            yield Record(prompt, first["answers"][0]["text"])


def boolq(path: Path) -> Iterator[Record]:
    """BoolQ, JSON lines: a passage with its title, a question, yes or no."""
    for row in _json_lines(path):
        prompt = (
            "Please read the following passage and answer the question directly with either 'yes' or 'no' without "
            f"analysis process.\n\n ### Passage:\n{row['title']} -- {row['passage']}\n### Question:\n"
            f"{row['question']}\n### Answer:"
        )
        yield Record(prompt, "yes" if row["answer"] else "no")


def gsm8k(path: Path) -> Iterator[Record]:
    """GSM8K, JSON lines: the answer is the last word of the worked solution."""
    for row in _json_lines(path):
        yield Record(row["question"], row["answer"].split(" ")[-1])


def prompts(path: Path) -> Iterator[Record]:
    """JSON lines with ``prompt`` alone, for calibration."""
    for row in _json_lines(path):
        yield Record(row["prompt"], "NULL")


def ceval(path: Path) -> Iterator[Record]:
    """C-Eval: one folder of the set (``dev``, ``val``, ``test``) with a file ``SUBJECT_FOLDER.csv`` for each subject.

    The rows go round the subjects, so that any number of them from the beginning is a fair sample. Raises
    ``FileNotFoundError`` for a folder without a single file; logs how many subjects are missing.
    """
    found = {subject: file for subject in SUBJECTS if (file := path / f"{subject}_{path.name}.csv").is_file()}
    if not found:
        raise FileNotFoundError(f"{path}: no file of C-Eval here; expected files such as marxism_{path.name}.csv")
    if len(found) < len(SUBJECTS):
        logger.warning("%s: %d of C-Eval's %d subjects have no file", path, len(SUBJECTS) - len(found), len(SUBJECTS))
    by_subject = [list(_ceval_rows(subject, file)) for subject, file in found.items()]
    for row in zip_longest(*by_subject):
        yield from filter(None, row)


def _ceval_rows(subject: str, file: Path) -> Iterator[Record]:
    with open(file, encoding="utf-8-sig", newline="") as rows:
        for row in csv.DictReader(rows):
            yield Record(question(subject, row), row.get("answer") or "", SUBJECTS[subject])


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "squad1.1": squad,
    "boolq": boolq,
    "gsm8k": gsm8k,
    "ceval": ceval,
    "calibrate": prompts,
}


def wikitext(path: Path) -> str:
    """WikiText-2's running text, with the spaces taken out again that its tokenization put in, headings left out."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import read_table  # type: ignore[import-not-found,import-untyped,unused-ignore]

        return "\n\n".join(str(text) for text in read_table(path, columns=["text"])["text"].to_pylist())
    text = path.read_text(encoding="utf-8")
    for pattern, replacement in _WIKITEXT:
        text = re.sub(pattern, replacement, text)
    paragraphs = (paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip())
    return "\n\n".join(p.strip() for p in paragraphs if not p.strip().startswith("="))


_WIKITEXT = (
    (r" @([-,.])@ ", r"\1"),  # 1 @,@ 000
    (r" ([:;.!?,])(?=\s|$)", r"\1"),
    (r"([(\[{]) *([^)\]}\n]*?) *([)\]}])", r"\1\2\3"),
    (r'" *([^"\n]*?) *"', r'"\1"'),
    (r" ('s|s ')(?=\s|$)", lambda match: match[1].replace(" ", "")),
    (r"(?m)^ +| +$", ""),
)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
