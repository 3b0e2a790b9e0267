"""Readers to fuzz. A target has seed files and reads a mutant of one: it returns or raises a GoldenStickError."""

import json
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from gs_core import calibration, quantize
from gs_core.api import open_source, resolve_recipe
from gs_core.journal import FOLDER, RECORDS, RUN, SAVED, Activations, Journal
from gs_core.storage import read_header, write_ckpt, write_safetensors, write_text
from gs_core.storage.writer import BEGUN
from gs_core.testing import ToyAdapter, write_toy

CORPUS = Path(__file__).parent / "corpus"
RUN_OF_TARGET = {"model": "fuzz"}


class Target(ABC):
    """A reader. ``seeds`` are files below ``folder``, and those of ``corpus/NAME``."""

    name: str

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        self.seeds = self.make()

    @abstractmethod
    def make(self) -> dict[str, bytes]:
        """Write what the reader needs; return the files to mutate: path below ``folder`` → content."""

    @abstractmethod
    def read(self) -> None:
        """Read the folder."""

    def corpus(self) -> list[tuple[str, bytes]]:
        """Mutants that failed before: file of the target, content. A name is ``NUMBER-FILE``."""
        kept = sorted((CORPUS / self.name).glob("*"))
        return [(path.name.split("-", 1)[1].replace("+", "/"), path.read_bytes()) for path in kept]


class RecipeFile(Target):
    name = "recipe"

    def make(self) -> dict[str, bytes]:
        recipe = resolve_recipe("w4a16-gptq")
        return {"a.yaml": recipe.to_yaml().encode(), "a.json": recipe.to_json().encode()}

    def read(self) -> None:
        for path in (self.folder / "a.yaml", self.folder / "a.json"):
            if path.exists():
                resolve_recipe(path).rule_for("model.layers.0.mlp.up_proj")


class Shards(Target):
    name = "shards"

    def make(self) -> dict[str, bytes]:
        tensors = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int8)}
        write_safetensors(self.folder / "a.safetensors", tensors.items())
        write_ckpt(self.folder / "a.ckpt", tensors.items())
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def read(self) -> None:
        for path in sorted(self.folder.iterdir()):
            for tensor in read_header(path).values():
                tensor.read()


class JournalFiles(Target):
    name = "journal"

    def make(self) -> dict[str, bytes]:
        journal = Journal(self.folder, RUN_OF_TARGET)
        for part in range(2):
            write_text(self.folder / f"{part}.safetensors", "weights")
            Activations(journal, part).write(0, {"hidden": np.ones(4, np.float32)})
            journal.record(part, [f"{part}.safetensors"], streams=[str(part)], seconds=0.5)
        journal.close()
        return {f"{FOLDER}/{name}": (self.folder / FOLDER / name).read_bytes() for name in (RUN, RECORDS, SAVED, BEGUN)}

    def read(self) -> None:
        """A resumed journal has a prefix of the recorded parts. A restarted journal has none."""
        before = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        try:
            journal = Journal(self.folder, RUN_OF_TARGET)
            journal.close()
            assert [(record["part"], record["seconds"]) for record in journal.records] == [(0, 0.5), (1, 0.5)][
                : len(journal.records)
            ]
        finally:
            Journal(self.folder, RUN_OF_TARGET, restart=True).close()
            for path, content in before.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


class Calibration(Target):
    name = "calibration"

    def make(self) -> dict[str, bytes]:
        np.save(self.folder / "a.npy", np.arange(64).reshape(4, 16))
        (self.folder / "a.jsonl").write_text('{"text": "some words of text"}\n{"prompt": "and more of them"}\n' * 4)
        (self.folder / "a.txt").write_text("some words of text\n" * 8)
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def read(self) -> None:
        for name in sorted(self.seeds):
            calibration.load(self.folder / name, 2, 8, lambda text: np.frombuffer(text.encode(), np.uint8).astype(int))


class Model(Target):
    """A real model's folder: config.json, tokenizer files, a header."""

    name = "model"

    def make(self) -> dict[str, bytes]:
        shutil.copytree(Path(__file__).parents[1] / "data" / "tiny-llama", self.folder, dirs_exist_ok=True)
        return {name: (self.folder / name).read_bytes() for name in ("config.json", "tokenizer_config.json")}

    def read(self) -> None:
        open_source(self.folder).model.tokenize("a few words")


class Export(Target):
    """A quantized folder."""

    name = "export"

    def make(self) -> dict[str, bytes]:
        source = Path(__file__).parents[1] / "data" / "tiny-llama"
        quantize(source, "w8a8-rtn", self.folder)
        return {name: (self.folder / name).read_bytes() for name in ("config.json", "model.safetensors.index.json")}

    def read(self) -> None:
        open_source(self.folder)


class Toy(Target):
    """A toy model's folder with an index and shards."""

    name = "toy"

    def make(self) -> dict[str, bytes]:
        write_toy(self.folder, shards=2, blocks=2, hidden=16, intermediate=16, heads=2, vocabulary=256)
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if path.suffix == ".json"} | {
            path.name: path.read_bytes() for path in self.folder.glob("*.safetensors")
        }

    def read(self) -> None:
        model = open_source(self.folder, adapter=ToyAdapter()).model
        json.dumps(model.config())


TARGETS: list[type[Target]] = [RecipeFile, Shards, JournalFiles, Calibration, Toy, Model, Export]
