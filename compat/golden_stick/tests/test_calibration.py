"""Every form of calibration data becomes one array of tokens."""

import numpy as np
import pytest

from gs_compat.calibration import tokens


class Tensor:
    """As MindSpore's."""

    def __init__(self, values):
        self.values = np.array(values)

    def asnumpy(self):
        return self.values


class Dataset:
    """As MindSpore's: it gives dictionaries when it is asked for an iterator of them."""

    def __init__(self, rows):
        self.rows = rows

    def create_dict_iterator(self, num_epochs, output_numpy):
        assert (num_epochs, output_numpy) == (1, True)
        return iter(self.rows)


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset([{"input_ids": np.array([[1, 2, 3], [4, 5, 6]]), "labels": np.array([[0], [0]])}]),
        [{"input_ids": [1, 2, 3]}, {"input_ids": Tensor([4, 5, 6])}],
        ({"input_ids": np.array([n, n + 1, n + 2])} for n in (1, 4)),
        [[1, 2, 3], [4, 5, 6]],
        [Tensor([1, 2, 3]), np.array([4, 5, 6], np.int32)],
        np.array([[1, 2, 3], [4, 5, 6]], np.int32),
        Tensor([[1, 2, 3], [4, 5, 6]]),
        {"input_ids": [[1, 2, 3], [4, 5, 6]]},
    ],
    ids=["dataset", "dicts", "generator", "lists", "arrays", "array", "tensor", "columns"],
)
def test_samples_of_one_length_stay_as_they_are(dataset):
    found = tokens(dataset)
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_one_list_of_numbers_is_one_sample():
    assert tokens([1, 2, 3]).tolist() == [[1, 2, 3]]


def test_samples_of_different_lengths_are_joined_and_cut_as_long_as_the_longest():
    assert tokens([[1, 2, 3, 4], [5], [6, 7], [8, 9]]).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_padding_at_the_end_is_no_text():
    padded = [[1, 0, 2, 0, 0], [3, 4, 5, 0, 0], [0, 0, 0, 0, 0]]
    assert tokens(padded[:2], pad_token_id=0).tolist() == [[1, 0, 2], [3, 4, 5]]
    assert tokens(padded, pad_token_id=0).tolist() == [[1, 0, 2], [3, 4, 5]]
    assert tokens(padded[:2]).tolist() == padded[:2]


def test_nothing_is_longer_than_the_model_takes():
    assert tokens([[1, 2, 3], [4, 5, 6]], longest=2).tolist() == [[1, 2], [4, 5]]
    assert tokens([[1, 2, 3], [4, 5]], longest=2).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        ([{"labels": [1], "subjects": 2}], TypeError, "no 'input_ids'; it has: labels, subjects"),
        (np.zeros((2, 3)), TypeError, "float64"),
        ("calibration.txt", TypeError, "got str"),
        (7, TypeError, "got int"),
        ([], ValueError, "0 samples with 0 tokens"),
        ([[5]], ValueError, "1 samples with 1 tokens"),
    ],
)
def test_what_holds_no_tokens_is_an_error(dataset, error, words):
    with pytest.raises(error, match=words):
        tokens(dataset)
