"""Who answers to the name `mindspore_gs`: a real one always, whatever the order of installation or of paths."""

import os
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import pytest

import gs_compat
from gs_compat.finder import FACADE

MODULES = sorted(
    ".".join(path.relative_to(FACADE).with_suffix("").parts).removesuffix(".__init__")
    for path in Path(FACADE).rglob("*.py")
)
SOURCE = str(Path(gs_compat.__file__).parents[1])
SHOW = "import mindspore_gs; print(mindspore_gs.__file__)"


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A folder of installed things: only the line that the distribution adds to every start of Python."""
    (line,) = [file for file in files("golden-stick-compat") or () if file.name == "golden_stick_compat.pth"]
    folder = tmp_path_factory.mktemp("site")
    (folder / line.name).write_text(line.read_text())
    return folder


def python(code: str, *paths: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with the libraries of this one, and with `site` as its only site folder."""
    libraries = [path for path in sys.path if path]
    start = f"import site; site.addsitedir({str(site)!r})\n" if site else ""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, *map(str, paths), *libraries])}
    command = [sys.executable, "-S", "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def real(tmp_path) -> Path:
    """A folder on a path with somebody else's `mindspore_gs`."""
    (tmp_path / "mindspore_gs").mkdir()
    (tmp_path / "mindspore_gs" / "__init__.py").write_text("REAL = True\n")
    (tmp_path / "mindspore_gs" / "ptq.py").write_text("PTQ = 'the real one'\n")
    return tmp_path


def test_alone_the_name_is_ours(site):
    run = python(SHOW, site=site)
    assert (run.stdout.strip(), run.stderr) == (str(Path(FACADE, "mindspore_gs", "__init__.py")), "")


def test_without_the_finder_there_is_no_such_name():
    assert "No module named 'mindspore_gs'" in python(SHOW).stderr


def test_a_real_one_wins_and_a_warning_names_both(real, site):
    run = python("from mindspore_gs.ptq import PTQ; print(PTQ)", real, site=site)
    assert run.stdout == "the real one\n"
    assert f"mindspore_gs is imported from {real}" in run.stderr
    assert "golden-stick-compat" in run.stderr and "pip uninstall mindspore-gs" in run.stderr


def test_a_real_one_wins_in_the_same_folder(real, site):
    run = python(
        f"import site; site.addsitedir({str(real)!r})\nimport mindspore_gs; print(mindspore_gs.REAL)", site=site
    )
    assert run.stdout == "True\n"


def test_a_real_one_wins_that_another_finder_finds(real, site):
    """As those of editable installs, which stand behind the path's own."""
    code = f"""
import sys
from importlib.machinery import PathFinder
class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [{str(real)!r}]) if name == "mindspore_gs" else None
sys.meta_path.append(Editable)
import mindspore_gs; print(mindspore_gs.REAL)
"""
    assert python(code, site=site).stdout == "True\n"


def test_a_real_ones_missing_module_is_not_answered_from_here(real, site):
    """Half of each would be worse than either."""
    run = python("import mindspore_gs.common", real, site=site)
    assert "No module named 'mindspore_gs.common'" in run.stderr


def test_every_name_that_a_module_offers_is_there(site):
    names = "".join(
        f"import {module}\nfor n in getattr({module}, '__all__', ()): getattr({module}, n)\n" for module in MODULES
    )
    run = python(
        names + "import sys\nprint([m for m in ('mindspore', 'torch', 'transformers') if m in sys.modules])", site=site
    )
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


def test_a_start_of_python_imports_next_to_nothing(site):
    code = "import sys; print(sorted(m for m in sys.modules if m.startswith(('gs_', 'pydantic', 'numpy'))))"
    run = python(code, site=site)
    assert run.stdout.strip() == "['gs_compat', 'gs_compat.finder']"
