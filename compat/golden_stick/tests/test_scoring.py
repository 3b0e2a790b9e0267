"""SQuAD's official figures, and MindFormers' own."""

import pytest

from gs_compat.scoring import EmF1, _longest_run, normalize, score, squad


@pytest.mark.parametrize(
    ("prediction", "answer", "f1", "em"),
    [
        ("The Denver Broncos!", "denver broncos", 1.0, 1.0),
        ("Saint Bernadette Soubirous", "Bernadette", 0.5, 0.0),
        ("it is a copper statue of Christ", "a copper statue of Christ", 0.8, 0.0),
        ("in the late 1990s", "late 1990s", 0.8, 0.0),
        ("gold gold", "gold", 2 / 3, 0.0),
        ("Rome", "Paris", 0.0, 0.0),
        ("", "Paris", 0.0, 0.0),
        ("The", "a", 1.0, 1.0),
    ],
)
def test_squad_counts_the_words_in_common(prediction, answer, f1, em):
    assert squad(prediction, answer) == (pytest.approx(f1), em)


def test_normalisation_leaves_words_and_single_spaces():
    assert normalize("  The  U.S.A.'s\nan apple; theatre ") == "usas apple theatre"


def test_the_best_of_several_right_answers_counts_and_means_are_per_cent():
    found = score(["Santa Clara", "blue"], [["Levi's Stadium", "Santa Clara"], "red"])
    assert found == {"F1": 50.0, "Em": 50.0}


def test_batches_add_up():
    metric = EmF1()
    metric.update(["Paris"], ["Paris"])
    metric.clear()
    metric.update(["Rome"], ["Paris"])
    metric.update(["in Paris"], [["Paris"]])
    assert metric.eval() == {"F1": pytest.approx(100 / 3), "Em": 0.0}


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="0 predictions"):
        EmF1().eval()
    with pytest.raises(ValueError, match="'squad'"):
        EmF1("squat")


def test_the_longest_run_is_contiguous():
    assert _longest_run("abcde", "abxde") == 2
    assert _longest_run("xabcy", "abc") == 3


@pytest.mark.lane
def test_mindformers_variant_has_its_own_example():
    """The example of its documentation: 75 and 50."""
    predictions, answers = (
        ["I love Beijing, because it's beautiful", "Hello world。"],
        ["I love Beijing.", "Hello world"],
    )
    assert score(predictions, answers, "emf1") == {"F1": 75.0, "Em": 50.0}
    assert score(["郑州市。\nand more"], ["郑州市"], "emf1") == {"F1": 100.0, "Em": 100.0}
    assert score(["郑州"], ["郑州市"], "emf1") == {"F1": pytest.approx(80.0), "Em": 0.0}


@pytest.mark.lane
def test_mindformers_variant_agrees_with_mindformers(capsys):
    from mindformers.core.metric import EmF1Metric

    predictions = [" the cat-sat, on\nx", "北京是中国的首都，不是上海", "A b c d e", ""]
    answers = ["The cat sat on", "中国首都：北京", "a b x d e", "nothing"]
    theirs = EmF1Metric()
    theirs.clear()
    theirs.update(list(predictions), list(answers))
    assert score(predictions, answers, "emf1") == pytest.approx(theirs.eval())
