"""F1 and exact match of answers: SQuAD's official way, and MindFormers' by name.

``squad``: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
https://arxiv.org/abs/1606.05250, section 6.1, with the normalisation of its evaluation script: lower case, without
punctuation, articles and surplus spaces; F1 counts the words in common; the best of several right answers counts.

``emf1``: as ``mindformers.core.metric.EmF1Metric`` computes it: the prediction's first line; exact match after taking
out a list of (mostly Chinese) signs; F1 from the longest run of segments in common, which is less than the words in
common as soon as one between them differs.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from gs_schemas import unknown

_SIGNS = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
Answers = str | Sequence[str]


def normalize(text: str) -> str:
    """SQuAD's form of an answer to compare."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def squad(prediction: str, answer: str) -> tuple[float, float]:
    """F1 and exact match, 0 to 1, of one prediction against one answer."""
    ours, theirs = normalize(prediction), normalize(answer)
    common = Counter(ours.split()) & Counter(theirs.split())
    return _f1(common.total(), ours.split(), theirs.split()), float(ours == theirs)


def emf1(prediction: str, answer: str) -> tuple[float, float]:
    """F1 and exact match, 0 to 1, by MindFormers' rules. Needs jieba."""
    prediction = prediction.strip().split("\n")[0]
    ours, theirs = _segments(prediction), _segments(answer)
    run = _longest_run(ours, theirs)
    return _f1(run, ours, theirs) if run else 0.0, float(_without_signs(prediction) == _without_signs(answer))


SCORINGS: dict[str, Callable[[str, str], tuple[float, float]]] = {"squad": squad, "emf1": emf1}


def score(predictions: Sequence[str], answers: Sequence[Answers], scoring: str = "squad") -> dict[str, float]:
    """``{"F1": …, "Em": …}``, means in per cent. An answer may be a list of right ones, of which the best counts.

    Raises ``ValueError`` for another scoring, or unless there is an answer for every prediction, and one at least.
    """
    if scoring not in SCORINGS:
        raise ValueError(unknown("scoring", scoring, SCORINGS))
    if len(predictions) != len(answers) or not predictions:
        raise ValueError(f"{len(predictions)} predictions and {len(answers)} answers; there must be as many, and one")
    total_f1 = total_em = 0.0
    for prediction, right in zip(predictions, answers, strict=True):
        found = [SCORINGS[scoring](prediction, answer) for answer in ([right] if isinstance(right, str) else right)]
        total_f1 += max(f1 for f1, _ in found)
        total_em += max(em for _, em in found)
    return {"F1": 100 * total_f1 / len(predictions), "Em": 100 * total_em / len(predictions)}


class EmF1:
    """Gathers answers batch by batch, with the methods of a MindSpore metric: ``clear``, ``update``, ``eval``."""

    def __init__(self, scoring: str = "squad"):
        if scoring not in SCORINGS:
            raise ValueError(unknown("scoring", scoring, SCORINGS))
        self.scoring = scoring
        self.clear()

    def clear(self) -> None:
        """Forget every answer."""
        self.predictions: list[str] = []
        self.answers: list[Answers] = []

    def update(self, predictions: Sequence[str], answers: Sequence[Answers]) -> None:
        """Take in a batch."""
        self.predictions += predictions
        self.answers += answers

    def eval(self) -> dict[str, float]:
        """See ``score``."""
        return score(self.predictions, self.answers, self.scoring)


def _f1(common: int, ours: Sequence[str], theirs: Sequence[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (len(ours) + len(theirs))


def _without_signs(text: str) -> str:
    return "".join(letter for letter in text.lower().strip() if letter not in _SIGNS)


def _segments(text: str) -> list[str]:
    """Chinese characters one by one, what stands between them by jieba."""
    import jieba  # type: ignore[import-not-found,import-untyped,unused-ignore]

    found: list[str] = []
    for piece in re.split(r"([\u4e00-\u9fa5])", _without_signs(text)):
        found += [piece] if re.match(r"[\u4e00-\u9fa5]", piece) else jieba.cut(piece)
    return found


def _longest_run(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    """The length of the longest contiguous stretch that both have."""
    longest = 0
    before = [0] * (len(theirs) + 1)
    for mine in ours:
        now = [0] + [before[j] + 1 if mine == other else 0 for j, other in enumerate(theirs)]
        longest, before = max(longest, *now), now
    return longest
