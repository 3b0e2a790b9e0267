"""The documentation against what it documents."""

import inspect
import re
from pathlib import Path

import pytest

from gs_core import hookspecs
from gs_core.stages import HOOKS

CHECKOUT = Path(__file__).parents[1]
GUIDES = sorted((CHECKOUT / "docs" / "guides").glob("*.md"))
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]


def test_there_is_a_guide_for_every_kind_of_plugin():
    kinds = {"write_an_algorithm.md", "write_a_format.md", "write_an_adapter.md", "write_a_kernel.md"}
    assert kinds <= {guide.name for guide in GUIDES}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_exact_arguments(hook):
    """In a heading or a code span: `quantize(block, layers, observed)`."""
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    documented = [guide.name for guide in GUIDES if f"`{hook}({arguments})`" in guide.read_text(encoding="utf-8")]
    assert documented, f"no guide says `{hook}({arguments})`"


def test_no_guide_gives_a_hook_other_arguments():
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        for hook, arguments in re.findall(rf"`({'|'.join(HOOKS)})\(([^)`]*)\)`", text):
            assert arguments == ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters), guide.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if not link.startswith(("http://", "https://", "mailto:"))]
    assert [link for link in inside if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_python_in_the_docs_compiles(page):
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
        compile(code, f"{page.name}, block {number}", "exec")


def figures_of_recipes(page: Path) -> dict[str, set[str]]:
    """By recipe: cells such as ``3.95 (14.672)`` of all lines of tables that name it."""
    found: dict[str, set[str]] = {}
    for line in re.findall(r"^\| .*\|$", page.read_text(encoding="utf-8"), re.MULTILINE):
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        figures = {cell for cell in cells if re.fullmatch(r"[\d.]+ \([\d.]+\)", cell)}
        for cell in cells if figures else ():
            if re.fullmatch(r"(w\da\d+|kv)\S*", cell):
                found.setdefault(cell, set()).update(figures)
    return found


def test_readme_shows_the_figures_of_the_benchmarks():
    """One figure for one recipe in all files."""
    shown = figures_of_recipes(CHECKOUT / "README.md")
    measured = figures_of_recipes(CHECKOUT / "docs" / "benchmarks.md")
    assert shown
    for recipe, figures in shown.items():
        assert figures <= measured[recipe], recipe
