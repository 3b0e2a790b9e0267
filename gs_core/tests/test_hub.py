"""Hub ids are looked up in the local Hugging Face cache; nothing is downloaded."""

import shutil

import numpy as np
import pytest

from gs_core import CalibrationError, PlanError, calibration, hub
from gs_core.api import open_source
from gs_core.testing import ToyAdapter

COMMIT = "0123456789abcdef"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def cached(home, repository, files, commit=COMMIT, main=COMMIT):
    """A repository in the cache: links in the snapshot, their content in blobs."""
    folder = home / "hub" / repository
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for number, (name, content) in enumerate(files.items()):
        (folder / "blobs" / f"{commit}{number}").write_bytes(content)
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder / "blobs" / f"{commit}{number}")
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(main)
    return folder / "snapshots" / commit


def stream(source):
    return bytes(calibration.stream(source, 1000, lambda text: list(text.encode())).tolist()).decode()


def test_a_model_is_opened_from_its_snapshot(home, toy):
    files = {path.name: path.read_bytes() for path in toy.iterdir()}
    snapshot = cached(home, "models--user--toy", files)
    shutil.rmtree(toy)
    model = open_source("user/toy", adapter=ToyAdapter()).model
    assert model.folder == snapshot
    assert np.isfinite(model.read("embed.weight")).all()


def test_the_main_branch_is_taken_else_the_only_snapshot(home):
    for commit in ("aaa", "bbb"):
        cached(home, "models--gpt2", {"config.json": b"{}"}, commit, main="bbb")
    assert hub.snapshot("models", "gpt2").name == "bbb"
    (home / "hub/models--gpt2/refs/main").unlink()
    assert hub.snapshot("models", "gpt2") is None
    shutil.rmtree(home / "hub/models--gpt2/snapshots/aaa")
    assert hub.snapshot("models", "gpt2").name == "bbb"


@pytest.mark.parametrize("main", ["../../other", "ccc", ""])
def test_a_branch_that_names_another_folder_is_not_followed(home, main):
    cached(home, "models--gpt2", {"config.json": b"{}"})
    (home / "hub/models--gpt2/refs/main").write_text(main)
    (home / "hub/other").mkdir()
    assert hub.snapshot("models", "gpt2") is None


def test_an_environment_variable_moves_the_cache(home, tmp_path, monkeypatch):
    cached(tmp_path, "models--gpt2", {"config.json": b"{}"})
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub.snapshot("models", "gpt2") is not None


def test_a_model_that_is_not_cached_says_how_to_download_it(home):
    with pytest.raises(PlanError, match=rf"user/toy: no such model folder.*{home}/hub.*: hf download user/toy$"):
        open_source("user/toy")


@pytest.mark.parametrize(("source", "message"), [("", "the path of the model is empty"), ("a.txt", "a.txt is a file")])
def test_paths_that_are_not_model_folders(source, message, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(PlanError, match=message):
        open_source(source)


def test_a_dataset_is_read_from_its_snapshot_the_training_split_alone(home):
    files = {
        "README.md": b"about",
        "dataset_infos.json": b"{}",
        "data/train-1.jsonl": b'{"text": "a"}',
        "data/test-1.jsonl": b'{"text": "b"}',
    }
    cached(home, "datasets--user--texts", files)
    assert stream("user/texts") == "a"


def test_a_dataset_without_splits_is_read_whole(home):
    cached(home, "datasets--texts", {"README.md": b"about", "a.txt": b"a"})
    assert stream("texts") == "a"


def test_a_file_of_that_name_comes_before_the_cache(home, tmp_path):
    cached(home, "datasets--texts", {"a.txt": b"a"})
    (tmp_path / "texts").write_text("b")
    assert stream("texts") == "b"


def test_a_dataset_that_is_not_cached_says_how_to_download_it():
    message = r"user/texts: no such text file or folder.*hf download user/texts --repo-type dataset$"
    with pytest.raises(CalibrationError, match=message):
        stream("user/texts")


@pytest.mark.parametrize("name", ["texts.jsonl", "data/texts.txt", "/a/b", "../texts"])
def test_a_file_path_is_not_a_hub_id(name):
    with pytest.raises(CalibrationError, match=r"no such text file or folder$"):
        stream(name)


def test_several_versions_in_the_cache_of_the_datasets_library_are_not_guessed(home):
    for version in ("1.0", "2.0"):
        folder = home / "datasets" / "user___open_texts" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"user/OpenTexts: .*several versions; give the path of one: .*1\.0, "):
        stream("user/OpenTexts")
