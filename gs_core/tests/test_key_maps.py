"""Maps of cached keys on the line: planned, observed behind, written, read back, computed, and resumed."""

import numpy as np
import pytest

from gs_core import Algorithm, LinearMap, PlanError, Site, SiteTransform, api, evaluation, hookimpl
from gs_core.arrays import astype, from_raw, to_raw
from gs_core.interfaces import Transform
from gs_core.storage import Checkpoint, read_header, write_safetensors
from gs_core.testing import ToyAdapter
from gs_core.testing.plugins import Caching, Plain
from gs_schemas import Recipe

INT8 = {"format": "int8", "granularity": "tensor"}
INT4 = {"format": "int4", "granularity": "head", "dynamic": True}
SPUN = {"scheme": {"kv_cache": INT8}, "algorithms": ["spin", "caching"]}
UNSPUN = SPUN | {"algorithms": ["caching"]}
HEAD = 16
SPIN = LinearMap((np.array([[1, 1], [1, -1]], np.float32) / np.float32(2**0.5),) * 4, orthogonal=True)


class Spinning(Algorithm):
    """Rotates the keys of each head."""

    maps_keys = {"hadamard": "do not spin"}

    @hookimpl
    def smooth(self, keys: list[Site]) -> list[Transform]:
        return [SiteTransform(site.name, SPIN) for site in keys]


class Everywhere(Spinning):
    """Rotates what it may not, too."""

    @hookimpl
    def smooth(self, block) -> list[Transform]:
        return [SiteTransform(site.name, SPIN) for site in block.sites.values() if not site.layers]


@pytest.fixture(autouse=True)
def _installed(site):
    home = "gs_core.testing.plugins:Caching"
    site("spinner", algorithm=f"caching = {home}\nspin = {__name__}:Spinning\neverywhere = {__name__}:Everywhere")


@pytest.fixture
def outlier(toy):
    """The toy, with one key channel of each head thirty times as large as the others."""
    for file in toy.glob("*.safetensors"):
        tensors = {name: tensor.read() for name, tensor in Checkpoint(toy).tensors.items() if name in read_header(file)}
        for name, raw in tensors.items():
            if name.endswith(".k.weight"):
                weight = astype(from_raw(raw), "float32")
                weight[3::HEAD] *= 30
                tensors[name] = to_raw(astype(weight, raw.dtype))
        write_safetensors(file, tensors.items())
    return toy


def planned(toy, **fields):
    return api.plan(toy, Recipe.parse({"format": "plain"} | fields), adapter=ToyAdapter())


def problems(toy, **fields) -> list[str]:
    with pytest.raises(PlanError) as caught:
        planned(toy, **SPUN | fields)
    return caught.value.problems


def perplexity(folder, tokens) -> float:
    return evaluation.evaluate(folder, tokens, seq_len=24, windows=8, adapter=ToyAdapter()).perplexity


# --- what is planned ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("plugins")
def test_the_plan_shows_who_maps_the_keys(toy):
    made = planned(toy, **SPUN)
    rows = {row["layer"]: row for row in made.table()}
    assert rows["blocks.0.attention"]["algorithms"] == ["spin", "caching"]
    assert rows["blocks.0.q"]["algorithms"] == []


@pytest.mark.usefixtures("plugins")
def test_a_map_is_found_by_running_even_before_dynamic_scales(toy):
    assert planned(toy, **SPUN | {"scheme": {"kv_cache": INT4}}).needs_data
    assert not planned(toy, **UNSPUN | {"scheme": {"kv_cache": INT4}}).needs_data


@pytest.mark.usefixtures("plugins")
def test_a_format_that_holds_no_such_map_is_a_problem_of_the_plan(toy, monkeypatch):
    monkeypatch.setattr(Plain, "holds_keys", frozenset({"rotation"}))
    (problem,) = problems(toy)
    assert "algorithm 'spin': this checkpoint format holds no hadamard map of cached keys; do not spin" in problem


@pytest.mark.usefixtures("plugins")
def test_keys_that_are_cached_before_their_rotation_are_not_mapped(toy, monkeypatch):
    monkeypatch.setattr(Caching, "kinds", ("value",))
    (problem,) = problems(toy)
    assert "algorithm 'spin' maps keys after their rotation, and 'caching' quantizes none of those" in problem
    assert problem.endswith("do not spin")


@pytest.mark.parametrize(
    "fields",
    [
        {"scheme": "W8A16", "algorithms": ["spin", "round"]},
        {"overrides": [{"match": "*.attention", "scheme": {"kv_cache": INT8}, "algorithms": ["caching"]}]},
    ],
    ids=["no cache is quantized", "others treat the caches"],
)
@pytest.mark.usefixtures("plugins")
def test_where_there_are_no_keys_to_map_it_says_so(toy, fields):
    (problem,) = problems(toy, **fields)
    assert problem == "algorithm 'spin' finds no quantized keys to map; give scheme a kv_cache, or do not spin"


# --- what is run -------------------------------------------------------------------------------------------------


def test_scales_are_those_of_mapped_keys(run, toy, tokens):
    report = run(**SPUN)
    seen = {}
    ToyAdapter().open(toy, "cpu").block(0, (tokens, None)).run(tokens, None, seen.__setitem__)
    keys = SPIN.apply(seen["blocks.0.attention.key"].astype(np.float32))
    opened = api.open_source(report.out, adapter=ToyAdapter())
    static = opened.caches["blocks.0.attention"].static
    np.testing.assert_allclose(static["key"].scale.astype(np.float32), [np.abs(keys).max() / 127.5], rtol=2**-8)
    np.testing.assert_allclose(
        static["value"].scale.astype(np.float32), [np.abs(seen["blocks.0.attention.value"]).max() / 127.5], rtol=2**-8
    )


def test_the_float_function_and_every_weight_stay(run, toy, tokens):
    folder = run(**SPUN).out
    source, written = (Checkpoint(f) for f in (toy, folder))
    for name, tensor in source.tensors.items():
        assert written[name].read().data.tobytes() == tensor.read().data.tobytes(), name
    opened = api.open_source(folder, adapter=ToyAdapter())
    block = opened.model.block(0, (tokens, None))
    before = block.run(tokens, None)["hidden"]
    block.online = evaluation.online(block, opened)
    assert list(block.online) == ["blocks.0.attention.key"]
    np.testing.assert_allclose(block.run(tokens, None)["hidden"], before, rtol=1e-4, atol=1e-4)


def test_an_outlier_channel_of_keys_no_longer_takes_the_steps_of_all_others(run, outlier, tmp_path):
    """QuaRot, section 4: spread over sixteen channels, it makes steps up to four times as small."""
    plain, spun = (
        [
            row["error"]
            for row in run(source=outlier, out=tmp_path / name, **fields).data["caches"]
            if row["of"] == "key"
        ]
        for name, fields in (("plain", UNSPUN), ("spun", SPUN))
    )
    assert all(after < before / 5 for before, after in zip(plain, spun, strict=True))


def test_maps_are_stored_with_their_caches_and_told_in_the_report(run):
    report = run(**SPUN)
    described = {"kind": "hadamard", "sizes": [2] * 4, "identity": [False] * 4, "scaled": False}
    rows = {(row["cache"], row["of"]): row for row in report.data["caches"]}
    assert rows["blocks.1.attention", "key"]["online"] == described
    assert "online" not in rows["blocks.1.attention", "value"]
    caches = api.open_source(report.out, adapter=ToyAdapter()).caches
    assert all(np.array_equal(c.online.dense(HEAD), SPIN.dense(HEAD)) for c in caches.values())


def test_evaluation_computes_with_the_map(run, tokens, monkeypatch):
    folder = run(**SPUN | {"scheme": {"kv_cache": {"format": "int4", "granularity": "head"}}}).out
    with_it = perplexity(folder, tokens)
    monkeypatch.setattr("gs_core.testing.plugins._online", lambda *arguments: None)
    assert perplexity(folder, tokens) != with_it


def test_what_is_no_quantized_key_is_not_mapped_and_reported(run):
    """Values are, one cache is not quantized."""
    overrides = [{"match": "blocks.1.attention", "scheme": {"weights": None}}]
    report = run(algorithms=["everywhere", "caching"], scheme=SPUN["scheme"], overrides=overrides)
    mapped = [row["cache"] for row in report.data["caches"] if "online" in row]
    assert mapped == ["blocks.0.attention", "blocks.2.attention"]
    notes = [note for note in report.data["notes"] if "was dropped" in note]
    assert len(notes) == 2
    assert all("attention.value was dropped" in note for note in notes)


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(goes_on):
    goes_on(**SPUN)
