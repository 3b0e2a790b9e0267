"""A transform stands when the float block computes what it computed before, wherever its sites see tokens."""

import numpy as np
import pytest

from gs_core import Block, ChannelScale, Fold
from gs_core.arrays import RawTensor
from gs_core.probing import SAMPLES, TOKENS
from gs_core.verification import apply_verified

FOLD = Fold("norm", ("everyone", "expert"), 4)


class Doubling(Block):
    """``hidden`` is what token ids say, and an expert adds to the tokens from ``first`` on. Its transform forgets to
    make up for itself there where it is ``faulty``."""

    name, index = "block", 0

    def __init__(self, first: int, faulty: bool):
        self.layers, self.sites, self.first, self.faulty = {}, {}, first, faulty
        self.expert, self.ran = 1.0, []

    def run(self, tokens, previous, on_site=None, weights=None):
        self.ran.append(tokens.shape)
        x = np.repeat(tokens.reshape(-1, 1).astype(np.float32), 4, axis=1)
        routed = x[self.first :]
        for name, seen in (("everyone", x), ("expert", routed)):
            if on_site is not None and len(seen):
                on_site(name, seen)
        hidden = x + 0.0
        hidden[self.first :] += self.expert * routed
        return {"hidden": hidden.reshape(*tokens.shape, 4)}

    def apply(self, transform):
        before, self.expert = self.expert, 2.0 if self.faulty else self.expert

        def undo():
            self.expert = before

        return transform, undo

    def rest(self, quantized):
        return iter(())


@pytest.fixture
def batch() -> tuple[np.ndarray, dict[str, RawTensor] | None]:
    return np.arange(1, 1 + 4 * SAMPLES * 2 * TOKENS).reshape(4 * SAMPLES, 2 * TOKENS), None


def test_a_site_that_sees_all_tokens_is_verified_on_a_few(batch):
    block = Doubling(0, faulty=False)
    transform = ChannelScale(FOLD, np.ones(4, np.float32))
    verified = apply_verified(block, [transform], batch)
    assert (verified.applied, verified.dropped) == ([transform], [])
    assert set(block.ran) == {(SAMPLES, TOKENS)}


@pytest.mark.parametrize("first", [5, SAMPLES * TOKENS, 7 * SAMPLES * TOKENS])
def test_experts_are_verified_on_all_tokens(batch, first):
    """The few reach the expert in part, or not at all: its fault is found all the same."""
    block = Doubling(first, faulty=True)
    transform = ChannelScale(FOLD, np.ones(4, np.float32))
    verified = apply_verified(block, [transform], batch)
    assert (
        verified.applied == [] and verified.dropped[0][0] is transform and "would change by" in verified.dropped[0][1]
    )
    assert block.ran[-1] == batch[0].shape and block.expert == 1.0
