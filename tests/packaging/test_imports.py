"""The import rules of the rooms, read from the source without running it.

schemas: pydantic, yaml and regex. gs_core: the schemas and its few libraries, no framework, not even late.
Algorithms, formats, kernels: gs_core, the schemas and what they declare; frameworks only once they are at work.
Adapters: gs_core, the schemas and their framework. Nobody: another plugin or adapter. What makes another product's
scripts run may stand on the adapter of its framework.
"""

import ast
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.utils import canonicalize_name

SCHEMAS = {"pydantic", "yaml", "regex"}
CORE = {"pluggy", "numpy", "array_api_compat", "ml_dtypes", "typer", "rich", "pydantic", "pytest", "pyarrow"}
OURS = {  # the rest: the core and the schemas
    "schemas": set(),
    "gs_core": {"gs_schemas"},
    "compat": {"gs_core", "gs_schemas", "gs_mindformers"},
}

# MindFormers' own pins can be met by no index, so whoever uses it has installed both already.
BROUGHT_BY_THE_USER = {"mindspore", "mindformers"}

# At import time these cost seconds.
FRAMEWORKS = {"torch", "torch_npu", "mindspore", "tensorflow", "jax"}
MODEL_LIBRARIES = {"transformers", "mindformers", "mindnlp", "accelerate", "diffusers"}

IMPORTERS = {"import_module", "__import__", "importorskip"}

# Whoever loads one of these runs what the file says.
CODE_IN_DATA = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


@dataclass(frozen=True)
class Import:
    module: str
    late: bool
    path: Path
    line: int

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.module}"


def walk(node: ast.AST, late: bool = False):
    """Every node below, with whether it runs only when a function is called (or never, for types)."""
    for child in ast.iter_child_nodes(node):
        inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inside = True
        yield child, inside
        yield from walk(child, inside)


def modules(node: ast.AST) -> list[str]:
    """The modules a node imports, by statement or by `import_module("name")`."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names, level=0):
            # The name may be a module too, as in `from safetensors import torch`.
            return [f"{module}.{alias.name}" for alias in names]
        case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
            return [name] if ast.unparse(func).split(".")[-1] in IMPORTERS else []
    return []


@cache
def imports(folder: Path) -> list[Import]:
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node, late in walk(ast.parse(path.read_text(), str(path))):
            found += [Import(module, late, path, node.lineno) for module in modules(node)]
    return found


def foreign(room) -> list[Import]:
    """What a room's source takes from outside itself and the standard library."""
    return [i for i in imports(room.source) if i.top not in {room.package, *sys.stdlib_module_names}]


def of(kind: str, rooms) -> list[Import]:
    return [i for room in rooms if room.kind == kind for i in foreign(room)]


def none(offenders) -> None:
    offenders = sorted(map(str, offenders))
    assert not offenders, "\n" + "\n".join(offenders)


def test_a_room_imports_only_the_rooms_below_it(room):
    allowed = OURS.get(room.kind, {"gs_core", "gs_schemas"})
    none(i for i in foreign(room) if i.top.startswith("gs_") and i.top not in allowed)


def test_schemas_and_core_import_only_their_libraries(rooms):
    for kind, libraries in {"schemas": SCHEMAS, "gs_core": CORE}.items():
        none(i for i in of(kind, rooms) if not i.top.startswith("gs_") and i.top not in libraries)


def test_core_takes_no_framework_through_a_library(rooms):
    """`array_api_compat.torch` and `safetensors.torch` are torch by another name."""
    none(i for i in of("gs_core", rooms) if FRAMEWORKS & set(i.module.split(".")[1:]))


def test_only_the_conformance_kit_imports_pytest(checkout, rooms):
    kit = checkout / "gs_core/src/gs_core/testing"
    none(i for room in rooms for i in foreign(room) if i.top == "pytest" and not i.path.is_relative_to(kit))


def test_a_plugin_imports_model_libraries_never(rooms):
    none(i for i in of("gs_plugins", rooms) if i.top in MODEL_LIBRARIES)


@cache
def distributions(top: str) -> set[str]:
    return {canonicalize_name(name) for name in packages_distributions().get(top, [])}


def providers(top: str, rooms) -> set[str]:
    """The distributions that bring a top-level module."""
    # What is not installed here, an extra's or the user's, is taken to be named like its module.
    return {room.name for room in rooms if room.package == top} or distributions(top) or {canonicalize_name(top)}


def test_what_a_room_imports_it_declares(room, rooms):
    extras = set(room.project["optional-dependencies"]) - {"test"}
    declared = room.declares(*extras) | BROUGHT_BY_THE_USER
    none(f"{i} is not declared" for i in foreign(room) if not providers(i.top, rooms) & declared)


def test_what_a_room_declares_it_imports(room, rooms):
    used = set().union(*(providers(i.top, rooms) for i in foreign(room)))
    none(f"{name} is never imported" for name in room.declares() - used)


def test_what_the_tests_of_a_room_import_it_declares(room, rooms):
    """Directly, for its tests, or through the rooms it stands on."""
    declared = room.declares("test") | {room.name} | BROUGHT_BY_THE_USER
    for _ in rooms:
        declared |= set().union(*(other.declares() for other in rooms if other.name in declared))
    local = {path.stem for path in (room.folder / "tests").rglob("*.py")}
    offered = {path.name for path in room.source.glob("facade/*")}
    known = {"_pytest", *local, *offered, *sys.stdlib_module_names}
    needed = [i for i in imports(room.folder / "tests") if i.top not in known]
    none(f"{i} is not declared" for i in needed if not providers(i.top, rooms) & declared)


def unsafe(node: ast.AST) -> bool:
    """Whether a node unpickles through a library."""
    match node:
        case ast.Attribute(value=ast.Name("torch"), attr="load"):
            return True
        case ast.keyword(arg="allow_pickle", value=value):
            return ast.unparse(value) != "False"
    return False


def test_nothing_reads_code_from_data(checkout, rooms):
    for folder in [*(room.folder for room in rooms), checkout / "docs", checkout / "tests"]:
        none(i for i in imports(folder) if i.top in CODE_IN_DATA or i.module == "torch.load")
        for path in folder.rglob("*.py"):
            none(f"{path}: {ast.unparse(n)}" for n, _ in walk(ast.parse(path.read_text())) if unsafe(n))


def loaded(*arguments: str) -> set[str]:
    """The top-level modules a fresh interpreter imports while it runs the arguments."""
    command = [sys.executable, "-X", "importtime", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    lines = run.stderr.splitlines()
    assert run.returncode == 0, "\n".join(line for line in lines if not line.startswith("import time:"))
    return {line.split("|")[-1].strip().split(".")[0] for line in lines if line.startswith("import time:")}


def test_importing_a_room_loads_no_framework(rooms):
    packages = [room.package for room in rooms if room.kind != "adapters"]
    for package in packages:
        seen = loaded("-c", f"import {package}")
        assert package in seen
        assert not seen & (FRAMEWORKS | MODEL_LIBRARIES), package


def test_help_loads_no_framework():
    seen = loaded(str(Path(sysconfig.get_path("scripts"), "gsq")), "--help")
    assert "gs_core" in seen
    assert not seen & (FRAMEWORKS | MODEL_LIBRARIES)
