"""Quantized caches: what is read back, what is planned, observed, exported and computed again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gs_core import evaluate, numerics
from gs_core.api import open_source
from gs_core.arrays import to_raw
from gs_core.errors import PlanError
from gs_core.interfaces import CheckpointFormat
from gs_core.testing import CacheSuite, ToyAdapter
from gs_core.testing.plugins import Caching
from gs_core.watching import fake_quantizer
from gs_schemas import QuantizationArgs, Recipe

HEADS, SIZE = 2, 4
INT8 = {"format": "int8", "granularity": "tensor"}
KV_ONLY = {"scheme": {"kv_cache": INT8}, "algorithms": ["caching"]}


class TestTheSmallestOne(CacheSuite):
    @pytest.fixture
    def algorithm(self):
        return Caching


@pytest.fixture(autouse=True)
def _caching(site):
    site("caching-plugin", algorithm="caching = gs_core.testing.plugins:Caching")


# --- what is read back -------------------------------------------------------------------------------------------

tokens_by_features = arrays.arrays(np.float32, (3, HEADS * SIZE), elements=st.floats(-8, 8, width=16))


def parts(x, granularity, size):
    """The views of ``(tokens, features)`` that share a scale."""
    tokens, features = x.shape
    match granularity:
        case "tensor":
            return [x]
        case "channel":
            return [x[:, i : i + 1] for i in range(features)]
        case "static head":
            return [x[:, h * SIZE : (h + 1) * SIZE] for h in range(HEADS)]
        case "token":
            return [x[t : t + 1] for t in range(tokens)]
        case _:  # neighbours of one token
            return [x[t : t + 1, i : i + size] for t in range(tokens) for i in range(0, features, size)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("granularity", "size", "dynamic"),
    [
        ("tensor", 0, False),
        ("channel", 0, False),
        ("head", 0, False),
        ("token", 0, True),
        ("head", SIZE, True),
        ("group", 2, True),
    ],
)
@given(x=tokens_by_features)
def test_every_part_that_shares_a_scale_is_rounded_under_its_own(granularity, size, dynamic, symmetric, x):
    args = QuantizationArgs(
        format="int8",
        granularity=granularity,
        group_size=size if granularity == "group" else None,
        symmetric=symmetric,
        dynamic=dynamic,
    )
    wanted = x.copy()
    shared = "static head" if granularity == "head" and not dynamic else granularity
    for part in parts(wanted, shared, size):
        scale, zero_point = numerics.scale_from_range(part.min(), part.max(), args, "float32")
        part[:] = numerics.decode(numerics.encode(part, scale, zero_point, args), scale, zero_point)
    params = () if dynamic else numerics.cache_params(x.min(0), x.max(0), x, HEADS, args, "float32")
    np.testing.assert_array_equal(numerics.fake_quantize_cache(x, HEADS, args, *params), wanted)


def test_a_static_cache_needs_its_scale():
    with pytest.raises(ValueError, match="a static cache needs a scale"):
        numerics.fake_quantize_cache(np.ones((2, 8), np.float32), HEADS, QuantizationArgs.model_validate(INT8))


# --- what is planned ---------------------------------------------------------------------------------------------


def test_a_recipe_of_a_cache_alone_quantizes_no_layer(run, toy):
    report = run(**KV_ONLY)
    assert report.layers == []
    assert [(row["cache"], row["of"]) for row in report.data["caches"]] == [
        (f"blocks.{block}.attention", kind) for block in range(3) for kind in ("key", "value")
    ]
    assert all(0 < row["error"] < 1e-3 and row["tokens"] == 192 for row in report.data["caches"])
    opened = open_source(report.out, adapter=ToyAdapter())
    assert opened.numbers == {}
    assert list(opened.caches) == ["blocks.0.attention", "blocks.1.attention", "blocks.2.attention"]


def table(toy, **fields):
    from gs_core import plan

    made = plan(toy, Recipe.parse({"format": "plain"} | fields), adapter=ToyAdapter())
    return made, {row["layer"]: (row["scheme"], row["algorithms"], row["why"]) for row in made.table()}


@pytest.mark.usefixtures("plugins")
def test_the_plan_shows_caches_beside_layers(toy):
    scheme = {"weights": {"format": "int8"}, "kv_cache": INT8}
    overrides = [{"match": "re:.*1.attention$", "scheme": {"kv_cache": INT8 | {"granularity": "head"}}}]
    made, rows = table(
        toy, scheme=scheme, algorithms=["round", "caching"], ignore=["*.2.attention", "lm_head"], overrides=overrides
    )
    assert rows["blocks.0.q"] == ("W8A16", ["round"], "recipe")
    assert rows["blocks.0.attention"] == ("kv int8 tensor", ["caching"], "recipe")
    assert rows["blocks.1.attention"] == ("kv int8 head", ["caching"], "override 're:.*1.attention$'")
    assert rows["blocks.2.attention"] == ("float", [], "ignore '*.2.attention'")
    assert made.needs_data
    assert made.warnings == ()


@pytest.mark.usefixtures("plugins")
def test_scales_found_at_run_time_need_no_data(toy):
    dynamic = {"kv_cache": {"format": "int8", "granularity": "token", "dynamic": True}}
    assert not table(toy, scheme=dynamic, algorithms=["caching"])[0].needs_data


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"scheme": {"weights": {"format": "int8"}, "kv_cache": INT8}, "algorithms": ["round"]},
            "scheme.kv_cache: none of its algorithms treats the KV cache; add 'kv_cache' to them, or remove it",
        ),
        (
            {"scheme": {"weights": {"format": "int8"}}, "algorithms": ["round", "caching"]},
            "algorithm 'caching' has nothing to do: no scheme has kv_cache; add one, or remove it",
        ),
        (
            {"scheme": {"kv_cache": {"format": "int4", "granularity": "group", "group_size": 3, "dynamic": True}}},
            "group_size 3 does not divide a head of 16 channels",
        ),
        (
            {"scheme": {"kv_cache": INT8 | {"after": INT8}}},
            "scheme.kv_cache.after: no installed algorithm quantizes in two stages; remove it",
        ),
        ({"scheme": {"kv_cache": INT8}, "ignore": ["*"]}, "no layer is left to quantize"),
    ],
)
@pytest.mark.usefixtures("plugins")
def test_what_cannot_be_done_names_the_fix(toy, fields, message):
    with pytest.raises(PlanError) as caught:
        table(toy, **({"algorithms": ["caching"]} | fields))
    assert message in str(caught.value)


@pytest.mark.usefixtures("plugins")
def test_a_model_without_caches_says_why(toy, monkeypatch):
    opened = ToyAdapter.open

    def without(self, *arguments):
        model = opened(self, *arguments)
        model.caches, model.uncached = [], "it has no attention"
        return model

    monkeypatch.setattr(ToyAdapter, "open", without)
    with pytest.raises(PlanError, match="there is no KV cache to quantize: it has no attention; remove it"):
        table(toy, **KV_ONLY)


@pytest.mark.usefixtures("plugins")
def test_keys_before_their_rotation_are_refused_where_there_is_none(toy, monkeypatch):
    monkeypatch.setattr(Caching, "kinds", ("unrotated_key", "value"))
    with pytest.raises(PlanError, match="would quantize keys before their rotation, but the toy rotates no positions"):
        table(toy, **KV_ONLY)


@pytest.mark.usefixtures("plugins")
def test_a_format_that_says_nothing_holds_no_cache(toy, monkeypatch):
    from gs_core.testing.plugins import Plain

    monkeypatch.setattr(Plain, "unsupported_cache", CheckpointFormat.unsupported_cache)
    with pytest.raises(PlanError, match="this checkpoint format has no place for a quantized KV cache"):
        table(toy, **KV_ONLY)


# --- what is run -------------------------------------------------------------------------------------------------


def test_the_next_block_sees_what_attention_reads_back(run, toy, tokens):
    report = run(**KV_ONLY)
    opened = open_source(report.out, adapter=ToyAdapter())
    first = opened.model.block(0, (tokens, None))
    caches = {
        site.name: (site, numbers.args, numbers.static[site.kind])
        for site in opened.model.caches[0].sites
        for numbers in [opened.caches["blocks.0.attention"]]
    }
    state = {n: to_raw(a) for n, a in first.run(tokens, None, fake_quantizer({}, caches)).items()}
    seen = {}
    ToyAdapter().open(toy, "cpu").block(1, (tokens, state)).run(tokens, state, seen.__setitem__)
    for kind, static in opened.caches["blocks.1.attention"].static.items():
        largest = np.abs(seen[f"blocks.1.attention.{kind}"]).max()
        np.testing.assert_allclose(static.scale.astype(np.float32), [largest / 127.5], rtol=2**-8)


def test_a_cache_is_observed_again_when_a_scale_was_folded_before_it(run, toy, tokens):
    """Values divided by what smoothing moved: their scale is that of the values as they will be cached."""
    scheme = {"weights": {"format": "int8"}, "inputs": {"format": "int8", "granularity": "tensor"}, "kv_cache": INT8}
    folder = run(algorithms=["level", "round", "caching"], scheme=scheme).out
    opened, seen = open_source(folder, adapter=ToyAdapter()), {}
    opened.model.block(0, (tokens, None)).run(tokens, None, seen.__setitem__)
    plain = {}
    ToyAdapter().open(toy, "cpu").block(0, (tokens, None)).run(tokens, None, plain.__setitem__)
    for kind, static in opened.caches["blocks.0.attention"].static.items():
        largest = np.abs(seen[f"blocks.0.attention.{kind}"]).max()
        np.testing.assert_allclose(static.scale.astype(np.float32), [largest / 127.5], rtol=0.03)
    values = "blocks.0.attention.value"
    assert np.abs(plain[values]).max() > 1.2 * np.abs(seen[values]).max(), "the fold changed them"


def test_evaluation_computes_with_the_cache(run, toy, tokens):
    def perplexity(folder):
        return evaluate(folder, tokens, seq_len=24, windows=8, adapter=ToyAdapter()).perplexity

    coarse = {"kv_cache": {"format": "int2", "granularity": "tensor"}}
    fine, rough = run(**KV_ONLY).out, run(out=toy.parent / "coarse", **KV_ONLY | {"scheme": coarse}).out
    assert perplexity(fine) == pytest.approx(perplexity(toy), rel=0.01)
    assert abs(perplexity(rough) / perplexity(toy) - 1) > 0.05
    assert evaluate(fine, tokens, seq_len=24, windows=8, adapter=ToyAdapter()).scheme == "kv int8 tensor"
