"""The rooms of this checkout: every folder with a pyproject.toml is a distribution of its own."""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[2]
PLACES = ("schemas", "gs_core", "gs_plugins/*/*", "adapters/*", "compat/*")


@dataclass(frozen=True)
class Room:
    """One distribution: `kind` is its row in the table of import rules."""

    folder: Path

    @property
    def kind(self) -> str:
        return self.folder.relative_to(CHECKOUT).parts[0]

    @cached_property
    def project(self) -> dict:
        return tomllib.loads((self.folder / "pyproject.toml").read_text())["project"]

    @property
    def name(self) -> str:
        return self.project["name"]

    @cached_property
    def package(self) -> str:
        (init,) = self.folder.glob("src/*/__init__.py")
        return init.parent.name

    @property
    def source(self) -> Path:
        return self.folder / "src" / self.package

    def declares(self, *extras: str) -> set[str]:
        """The distributions it depends on, with those of the extras."""
        optional = self.project.get("optional-dependencies", {})
        lines = self.project.get("dependencies", []) + [line for extra in extras for line in optional[extra]]
        return {canonicalize_name(Requirement(line).name) for line in lines}


ROOMS = [Room(path.parent) for place in PLACES for path in sorted(CHECKOUT.glob(f"{place}/pyproject.toml"))]


@pytest.fixture(scope="session")
def checkout() -> Path:
    return CHECKOUT


@pytest.fixture(scope="session")
def rooms() -> list[Room]:
    return ROOMS


@pytest.fixture(params=ROOMS, ids=lambda room: str(room.folder.relative_to(CHECKOUT)))
def room(request) -> Room:
    return request.param
