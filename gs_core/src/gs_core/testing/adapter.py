"""What every adapter owes the line."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gs_core.arrays import astype, from_raw, to_raw
from gs_core.comparing import channel_error
from gs_core.errors import CheckpointError
from gs_core.interfaces import Model
from gs_core.storage import (
    INDEX,
    SINGLE,
    Checkpoint,
    DerivedTensor,
    StoredTensor,
    Tensor,
    write_json,
    write_safetensors,
)
from gs_core.testing.model import LiveModelSuite
from gs_core.testing.opened import Case, contents
from gs_core.testing.suite import forward, numpy, sentence
from gs_core.testing.transforms import random_scale, random_stream


class AdapterSuite(LiveModelSuite):
    """Tests of an adapter on a checkpoint folder."""

    def test_it_refuses_folders_that_are_not_for_it(self, case: Case, tmp_path: Path) -> None:
        source, adapter, _ = case
        assert adapter.refuses(source) is None
        empty = tmp_path / "empty"
        empty.mkdir()
        assert sentence(adapter.refuses(empty))

    def test_it_plans_without_reading_a_weight(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(tensor: StoredTensor) -> Any:
            raise AssertionError(f"'{tensor.name}' was read")

        source, adapter, _ = case
        monkeypatch.setattr(StoredTensor, "opened", refuse)
        model = adapter.open(source, self.device)
        assert model.layers
        assert model.blocks
        assert model.config()
        assert model.nbytes() == Checkpoint(source).nbytes
        assert model.vocabulary() > 0
        assert all(path.is_file() for path in model.files())

    def test_what_is_not_quantized_is_written_bit_for_bit(self, case: Case, model: Model, tokens: np.ndarray) -> None:
        stored = {name: contents(tensor) for name, tensor in Checkpoint(case[0]).tensors.items()}
        assert {name: contents(tensor) for name, tensor in self.everything(model, tokens, quantized=False)} == stored

    def test_a_folded_block_is_written_as_it_computes(
        self, case: Case, model: Model, tokens: np.ndarray, tmp_path: Path
    ) -> None:
        block = model.block(0, (tokens, None))
        for fold in block.folds():
            block.apply(random_scale(fold, block))
        folder = rewritten(case[0], tmp_path / "folded", dict(block.rest(())))
        again = case[1].open(folder, self.device).block(0, (tokens, None))
        # All but for half a bfloat16 step on every weight that was folded.
        for name, layer in block.layers.items():
            assert np.allclose(numpy(layer.weight()), numpy(again.layers[name].weight()), rtol=2**-8, atol=0), name
        assert channel_error(forward(block, (tokens, None)), forward(again, (tokens, None))) < 2**-6

    def test_a_rotated_model_is_written_as_it_computes(
        self, case: Case, model: Model, tokens: np.ndarray, tmp_path: Path
    ) -> None:
        wanted = self.losses(model, tokens)
        rotated = case[1].open(case[0], self.device)
        try:
            rotated.rotate(random_stream(model))
        except ValueError:
            return
        folder = rewritten(case[0], tmp_path / "rotated", dict(self.everything(rotated, tokens, quantized=False)))
        write_json(folder / "config.json", rotated.config())
        # All but for half a step of the stored dtype on every weight.
        assert abs(self.losses(case[1].open(folder, self.device), tokens) - wanted).max() < 0.1

    def test_other_weights_have_another_fingerprint(self, case: Case, model: Model, tmp_path: Path) -> None:
        folder = shutil.copytree(case[0], tmp_path / "other")
        weights = max((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        assert case[1].open(folder, self.device).fingerprint() != model.fingerprint()

    def test_a_checkpoint_it_is_given_replaces_the_folders_own(
        self, case: Case, model: Model, tokens: np.ndarray
    ) -> None:
        source, adapter, _ = case
        name = f"{model.layers[0].name}.weight"
        checkpoint = Checkpoint(source)
        weight = 2 * astype(from_raw(checkpoint[name].read()), "float32")
        doubled = DerivedTensor(name, "float32", weight.shape, lambda: to_raw(weight))
        opened = adapter.open(source, self.device, checkpoint.replacing([name], {name: doubled}))
        for probe in (None, (tokens, None)):
            layer = opened.block(0, probe).layers[model.layers[0].name]
            assert np.array_equal(numpy(layer.weight()), weight)

    def test_a_missing_tensor_is_named(self, case: Case, model: Model, tmp_path: Path) -> None:
        name = f"{model.layers[-1].name}.weight"
        folder = rewritten(case[0], tmp_path / "torn", {}, without=name)
        with pytest.raises(CheckpointError, match=model.layers[-1].name.rpartition(".")[2]):
            opened = case[1].open(folder, self.device)
            opened.block(opened.layers[-1].block, None).layers[model.layers[-1].name].weight()


def rewritten(source: Path, folder: Path, changed: dict[str, Tensor], without: str = "") -> Path:
    """A copy of a checkpoint folder with some tensors replaced, or one left out, in a single file."""
    shutil.copytree(source, folder)
    for path in Checkpoint(folder).files:
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    tensors = dict(Checkpoint(source).tensors) | changed
    tensors.pop(without, None)
    write_safetensors(folder / SINGLE, tensors.items())
    return folder
