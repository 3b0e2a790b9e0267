"""The datasets that scripts get are MindSpore's."""

import numpy as np
import pytest

from gs_compat.calibration import tokens

pytestmark = [pytest.mark.lane, pytest.mark.usefixtures("mindspore")]


class Tokenizer:
    """One token for each character."""

    pad_token_id, eos_token_id = 0, 2

    def encode(self, text, add_special_tokens=True):
        return [*([1] if add_special_tokens else []), *map(ord, text)]


def squad(workspace, batch_size, need_pad, repeat=1, length=512):
    from gs_compat.datasets import get_datasets

    path = str(workspace / "squad" / "train-v1.1.json")
    return get_datasets(
        "squad1.1", path, "eval", batch_size, length, 200, Tokenizer(), -100, repeat, need_pad, n_samples=3
    )


def test_batches_have_names_and_go_round(workspace):
    dataset = squad(workspace, 2, True, repeat=2)
    assert dataset.get_dataset_size() == 4
    first, second, *_ = dataset.create_dict_iterator()
    assert first["input_ids"].shape == (2, 512)
    assert second["labels"].shape == (1, 512)
    assert str(first["input_ids"].dtype) == "Int32"
    assert first["input_ids"].asnumpy()[0, :5].tolist() == [1, *map(ord, "Read")]


def test_samples_of_their_own_lengths_come_one_by_one(workspace):
    lengths = [row["input_ids"].shape for row in squad(workspace, 1, False).create_dict_iterator()]
    assert len(lengths) == 3
    assert len(set(lengths)) > 1
    with pytest.raises(ValueError, match="need_pad=True, or batch_size 1"):
        squad(workspace, 2, False)


def test_they_calibrate(workspace):
    found = tokens(squad(workspace, 2, True, length=64), pad_token_id=0)
    assert found.shape == (3, 64)
    assert tokens(squad(workspace, 1, False), longest=100).shape[1] == 100


def test_a_generator_dataset_of_ones_own_calibrates():
    from mindspore.dataset import GeneratorDataset

    rows = [(np.array(f"s{n}"), np.arange(n, n + 4), np.array([n])) for n in range(3)]
    dataset = GeneratorDataset(source=rows, column_names=["subjects", "input_ids", "labels"], shuffle=False)
    assert tokens(dataset).tolist() == [[n, n + 1, n + 2, n + 3] for n in range(3)]


def test_each_set_has_a_function_of_its_own(workspace):
    from gs_compat.datasets import create_squad_dataset, create_wikitext_dataset

    class Callable(Tokenizer):
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": self.encode(text, add_special_tokens)}

    path = str(workspace / "squad" / "dev-v1.1.json")
    dataset = create_squad_dataset(path, "train", 1, 256, Tokenizer(), -1, 1, False, 2)
    assert dataset.get_dataset_size() == 2
    assert next(dataset.create_dict_iterator())["labels"].asnumpy()[0, 0] == -1
    (workspace / "wiki.tokens").write_text("word " * 100)
    chunks = create_wikitext_dataset(str(workspace / "wiki.tokens"), 2, 64, 32, Callable(), n_samples=5)
    assert [row["input_ids"].shape for row in chunks.create_dict_iterator()] == [(2, 32), (2, 32), (1, 32)]
