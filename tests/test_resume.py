"""Killed at any instant and started again, a run ends with the bytes of an undisturbed one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("kill_and_resume.py")
W4A4 = {"weights": {"format": "int4"}, "inputs": {"format": "int4", "granularity": "token", "dynamic": True}}
FLATQUANT = {"scheme": W4A4, "algorithms": [{"flatquant": {"epochs": 1, "lac": True}}], "format": "ascend"}
AUTOROUND = {"scheme": "W4A16", "algorithms": [{"autoround": {"steps": 3}}]}
W4A4_KV8 = W4A4 | {"kv_cache": {"format": "int8", "granularity": "head"}}
HADAMARD = {"scheme": W4A4_KV8, "algorithms": [{"hadamard": {"r3": True, "r4": True}}, "gptq", "kv_cache"]}
GUIDED = {"scheme": "W4A16", "algorithms": ["hadamard", {"gptq": {"asymmetric": True, "guided": True, "sweeps": 1}}]}


def contents(folder: Path) -> dict[str, bytes | dict]:
    """Every file of a folder, hidden ones too; of the report all but ``run``, which says how long it took."""
    found: dict[str, bytes | dict] = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")}
    report = json.loads(found["gsq_report.json"])
    run = set(report.pop("run")) - {"rotation_divergence"}  # a resumed run does not open the earlier blocks
    assert run == {"seconds", "seconds_of_this_process", "peak_memory_bytes"}
    return found | {"gsq_report.json": report}


@pytest.mark.parametrize(
    ("recipe", "kills", "seed"),
    [
        ("w4a16-gptq", 10, 0),
        ("w8a8-static-smoothquant", 10, 1),
        pytest.param(FLATQUANT, 4, 2, id="flatquant"),
        pytest.param(AUTOROUND, 4, 3, id="autoround"),
        pytest.param(HADAMARD, 4, 4, id="hadamard"),
        pytest.param(GUIDED, 4, 5, id="guided"),
    ],
)
def test_kills_leave_no_trace(data, tokens, tmp_path, recipe, kills, seed):
    np.save(tmp_path / "tokens.npy", tokens[:20_000])
    if isinstance(recipe, dict):
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
        recipe = tmp_path / "recipe.json"
    arguments = [data.model("tiny-llama-outliers"), recipe, tmp_path / "tokens.npy", tmp_path, kills, seed]
    ran = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    print(f"{recipe}: {told['seconds']} s undisturbed; killed at {sorted(told['killed'])}")
    assert len(told["killed"]) == kills

    expected = contents(tmp_path / "undisturbed")
    assert len([name for name in expected if name.endswith(".safetensors")]) == 5
    for number in range(told["folders"]):
        found = contents(tmp_path / str(number))
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name] == expected[name], f"{name} of {number}"
