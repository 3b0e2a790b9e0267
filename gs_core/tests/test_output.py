"""The output folder is checked before the model is opened."""

import pytest

from gs_core import OutputError, PlanError, quantize
from gs_core.output import check_output


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A model folder in the working directory."""
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "is the working directory"),
        ("..", "contains the "),
        ("model", "is the model"),
        ("../here/model", "is the model"),
    ],
)
def test_the_working_directory_and_the_model_are_not_written_to(here, output, message):
    with pytest.raises(PlanError, match=message):
        quantize("model", "w4a16-rtn", output)


def test_a_folder_with_files_is_not_written_to(here):
    (here / "out").mkdir()
    (here / "out" / "notes.txt").touch()
    for restart in (False, True):
        with pytest.raises(OutputError, match=r"out is not empty \(notes.txt …\)"):
            quantize("model", "w4a16-rtn", "out", restart=restart)


def test_a_file_is_not_a_folder(here):
    (here / "out").touch()
    with pytest.raises(OutputError, match="out is a file"):
        quantize("model", "w4a16-rtn", "out")


@pytest.mark.parametrize(("name", "restart"), [(".gsq", False), (".gsq", True), ("gsq_report.json", True)])
def test_earlier_runs_are_resumed_or_replaced(here, name, restart):
    (here / "out").mkdir()
    (here / "out" / "model.safetensors").touch()
    (here / "out" / name).mkdir() if name == ".gsq" else (here / "out" / name).touch()
    check_output(here / "out", here / "model", restart)


def test_new_and_empty_folders_are_written_to(here):
    (here / "empty").mkdir()
    check_output(here / "empty", here / "model", restart=False)
    check_output(here / "new", None, restart=True)
