"""vLLM on a CPU loads what is exported, and chooses the next tokens that transformers chooses.

Four-bit weights run in float16 there, the others in float32; transformers computes in float32 throughout, since in
bfloat16 two engines differ more than two checkpoints do. An engine quantizes activations at run time in its own order
of operations, so logarithms of probabilities agree to about a tenth, and a choice between two tokens that are as near
as that may fall either way.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

NEEDED = {"avx512f", "avx512_vnni"}


def lacking() -> set[str]:
    """Instructions that vLLM's kernels need and this processor has not; none where it does not list any."""
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.is_file() else []
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), NEEDED)
    return NEEDED - flags


pytestmark = [
    pytest.mark.lane,
    pytest.mark.skipif(
        bool(lacking()),
        reason=f"this processor has no {', '.join(sorted(lacking()))}: vLLM 0.32 has no four-bit weights and no fp8 "
        "caches without AVX-512, and its int8 sums saturate without VNNI (docs/engines.md)",
    ),
]

PROMPTS, NEW_TOKENS = 16, 8
UNDECIDED = 0.1
"""A difference between logarithms of probabilities that engines do not have to agree on."""
MIXED = {"overrides": [{"match": "*.mlp.*", "scheme": "W8A8", "algorithms": ["rtn"]}]}


@pytest.fixture(scope="session")
def prompts(tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of 48 to 108 tokens from all over the evaluation text."""
    starts = range(0, PROMPTS * 2000, 2000)
    asked = [tokens[start : start + 48 + 4 * number].tolist() for number, start in enumerate(starts)]
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps({"prompts": asked, "max_tokens": NEW_TOKENS}))
    return path


@pytest.fixture(scope="session")
def vllm() -> Path:
    """The interpreter of an environment of its own, which is made first if there is none yet."""
    command = [sys.executable, Path(__file__).with_name("environments.py"), "vllm"]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def test_vllm_caches_keys_and_values_under_our_scales(exported, engine, prompts, vllm):
    """Its attention on a CPU also multiplies in few bits where the cache has eight: not as near as with a float one."""
    folder = exported("tiny-llama", "kv-fp8")
    theirs = engine("transformers_next_tokens.py", folder, prompts, "--dtype", "float32")["results"]
    found = engine("vllm_next_tokens.py", folder, prompts, "--dtype", "float32", python=vllm)["results"]
    pairs = list(zip(found, theirs, strict=True))
    assert sum(here["tokens"][0] == there["tokens"][0] for here, there in pairs) >= PROMPTS - 2
    common = [(h["top5"], t["top5"], token) for h, t in pairs for token in h["top5"].keys() & t["top5"].keys()]
    assert np.mean([abs(here[token] - there[token]) for here, there, token in common]) < UNDECIDED


@pytest.mark.parametrize(
    ("recipe", "changes", "dtype", "flags"),
    [
        ("w4a16-gptq", {}, "float16", ()),
        ("w4a16-asym-rtn", {}, "float16", ()),
        ("w8a8-rtn", {}, "float32", ()),
        ("w8a8-static-rtn", {}, "float32", ()),
        ("w4a16-rtn", MIXED, "float16", ()),
    ],
    ids=["w4a16", "asymmetric", "w8a8", "w8a8-static", "mixed"],
)
def test_vllm_chooses_the_tokens_that_transformers_chooses(
    exported, engine, prompts, vllm, recipe, changes, dtype, flags
):
    folder = exported("tiny-llama", recipe, **changes)
    theirs = engine("transformers_next_tokens.py", folder, prompts, "--dtype", "float32", *flags)["results"]
    found = engine("vllm_next_tokens.py", folder, prompts, "--dtype", dtype, python=vllm)["results"]
    same, differences = 0, []
    for here, there in zip(found, theirs, strict=True):
        assert len(here["tokens"]) == len(there["tokens"]) == NEW_TOKENS
        best, second = sorted(there["top5"].values(), reverse=True)[:2]
        assert here["tokens"][0] == there["tokens"][0] or best - second < UNDECIDED
        same += here["tokens"][0] == there["tokens"][0]
        common = here["top5"].keys() & there["top5"].keys()
        assert len(common) >= 3
        differences += [abs(here["top5"][token] - there["top5"][token]) for token in common]
    print(f"{recipe}: {same} of {PROMPTS} first tokens, logarithms differ by {max(differences):.3f} at most")
    assert same >= PROMPTS - 2
    assert np.mean(differences) < UNDECIDED / 2
