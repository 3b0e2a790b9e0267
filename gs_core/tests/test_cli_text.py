"""Numbers and names as people read them."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gs_core.cli.text import collapse, count, duration, plural, size


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1 KiB"),
        (1536, "1.50 KiB"),
        (6_820_352, "6.50 MiB"),
        (15 * 2**30, "15 GiB"),
        (123.4 * 2**30, "123 GiB"),
        (2.5 * 2**40, "2.50 TiB"),
    ],
)
def test_size(nbytes, text):
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (12_500, "12.5 thousand"), (2_359_296, "2.36 million"), (6.74e9, "6.74 billion")]
)
def test_count(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (134, "2 min 14 s"),
        (11_100, "3 h 05 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_plural():
    assert [plural(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]


class TestCollapse:
    def test_a_layer_of_every_block_is_one_name(self):
        names = [f"model.layers.{i}.mlp.{leaf}" for i in range(28) for leaf in ("gate_proj", "up_proj")]
        assert collapse(names) == ["model.layers.{0..27}.mlp.gate_proj", "model.layers.{0..27}.mlp.up_proj"]

    def test_so_is_an_expert_of_every_block(self):
        names = [f"layers.{i}.experts.{e}.up" for i in range(3) for e in range(8)]
        assert collapse(names) == ["layers.{0..2}.experts.{0..7}.up"]

    def test_gaps_are_shown(self):
        assert collapse(f"h.{i}.o" for i in (0, 1, 3, 4, 5, 9)) == ["h.{0,1,3..5,9}.o"]

    def test_what_is_not_a_full_grid_is_several(self):
        names = ["l.0.e.0.up", "l.0.e.1.up", "l.1.e.0.up", "l.1.e.1.up", "l.2.e.1.up"]
        assert collapse(names) == ["l.{0,1}.e.{0,1}.up", "l.2.e.1.up"]

    def test_numbers_inside_a_word_are_part_of_it(self):
        assert collapse(["h.0.fc1", "h.0.fc2"]) == ["h.0.fc1", "h.0.fc2"]

    def test_a_name_alone_stays_as_it_is(self):
        assert collapse(["lm_head", "h.7.o"]) == ["lm_head", "h.7.o"]

    @given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["up", "down"]))))
    def test_it_names_the_same_layers_each_once(self, found):
        names = [f"layers.{i}.experts.{e}.{leaf}" for i, e, leaf in found]
        expanded = [name for pattern in collapse(names) for name in expand(pattern)]
        assert sorted(expanded) == sorted(names)


def expand(pattern: str) -> list[str]:
    """As a shell would."""
    parts = re.split(r"\{(.*?)\}", pattern)
    choices = [numbers(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def numbers(text: str) -> list[str]:
    found = []
    for run in text.split(","):
        first, _, last = run.partition("..")
        found += [str(n) for n in range(int(first), int(last or first) + 1)]
    return found
