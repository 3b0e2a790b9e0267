"""The shape of the checkout: what lies at its top, what a room consists of, what the metapackage lists."""

import subprocess
import tomllib

TOP = {
    *("gs_core", "gs_plugins", "adapters", "compat", "schemas", "tests", "docs", ".ci", ".gitignore"),
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt"),
}
DEFAULT = {
    "golden-stick-schemas": "schemas",
    "golden-stick-core": "gs_core",
    "golden-stick-hf": "adapters/hf",
    "golden-stick-rtn": "gs_plugins/algorithms/rtn",
    "golden-stick-smoothquant": "gs_plugins/algorithms/smoothquant",
    "golden-stick-osp": "gs_plugins/algorithms/osp",
    "golden-stick-awq": "gs_plugins/algorithms/awq",
    "golden-stick-gptq": "gs_plugins/algorithms/gptq",
    "golden-stick-autoround": "gs_plugins/algorithms/autoround",
    "golden-stick-hadamard": "gs_plugins/algorithms/hadamard",
    "golden-stick-flatquant": "gs_plugins/algorithms/flatquant",
    "golden-stick-kv-cache": "gs_plugins/algorithms/kv_cache",
    "golden-stick-mixed-precision": "gs_plugins/algorithms/mixed_precision",
    "golden-stick-compressed-tensors": "gs_plugins/formats/compressed_tensors",
    "golden-stick-mindspore-formats": "gs_plugins/formats/golden_stick",
}


def test_the_top_level_holds_exactly_what_it_should(checkout):
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout
    present = {path.split("/")[0] for path in files.split("\0") if (checkout / path).is_file()}
    assert present == TOP


def test_the_metapackage_lists_the_default_rooms(checkout, rooms):
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    listed = dict(line.split(" @ {root:uri}/") for line in project["dependencies"])
    assert listed == DEFAULT
    present = {room.name: room.folder.relative_to(checkout).as_posix() for room in rooms}
    assert listed.items() <= present.items()


def test_a_room_is_a_distribution_with_tests(room):
    assert room.name.startswith("golden-stick-")
    assert room.package.startswith("gs_")
    assert (room.source / "py.typed").is_file()
    assert (room.folder / room.project["readme"]).is_file()
    assert list(room.folder.glob("tests/**/test_*.py"))
    assert "test" in room.project["optional-dependencies"]


def test_a_plugin_registers_under_its_group(room):
    groups = {"gs_plugins": f"golden_stick.{room.folder.parent.name}", "adapters": "golden_stick.adapters"}
    groups["gs_core"] = "golden_stick.kernels"  # the reference kernel, which is always there
    expected = {groups[room.kind]} if room.kind in groups else set()
    assert set(room.project.get("entry-points", {})) == expected
