"""Walking over samples in minibatches: each once before any again, in an order that a seed decides."""

from itertools import islice

import numpy as np
import pytest

from gs_core.arrays import from_raw, to_raw
from gs_core.streams import minibatches, pick, pick_batch


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 8, 11, 100])
@pytest.mark.parametrize("sizes", [[4, 4, 4], [4, 4, 3], [1] * 11, [11]])
def test_an_epoch_has_every_sample_once(sizes, samples):
    walk, seen = minibatches(sizes, samples, seed=0), []
    everything = {(n, i) for n, size in enumerate(sizes) for i in range(size)}
    for _ in range(3):
        seen.clear()
        while len(seen) < len(everything):
            picked = [(n, i) for n, rows in next(walk) for i in range(rows.start, rows.stop)]
            assert 0 < len(picked) < samples + max(sizes)
            seen += picked
        assert set(seen) == everything
        assert len(seen) == len(everything)


def test_a_seed_decides_the_order():
    one, same, other = (list(islice(minibatches([2] * 9, 2, seed), 18)) for seed in ([0, 1], [0, 1], [1, 0]))
    assert one == same
    assert one != other
    assert one[:9] != one[9:], "another order in every epoch"


def test_samples_of_a_batch():
    hidden, positions = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2), np.arange(3)
    tokens = np.arange(12).reshape(4, 3)
    found, previous = pick_batch((tokens, {"hidden": to_raw(hidden), "1": to_raw(positions)}), slice(1, 3))
    assert np.array_equal(found, tokens[1:3])
    assert np.array_equal(from_raw(previous["hidden"]), hidden[1:3])
    assert np.array_equal(from_raw(previous["1"]), positions), "what is not by sample stays whole"
    assert pick_batch((tokens, None), slice(0, 2))[1] is None
    assert pick({"hidden": to_raw(hidden)}, 4, slice(3, 4))["hidden"].shape == (1, 3, 2)
