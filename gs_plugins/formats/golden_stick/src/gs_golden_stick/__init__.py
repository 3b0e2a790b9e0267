"""What MindSpore and Ascend engines load: the files of Golden Stick 1.x and of msModelSlim, by our own code."""

from gs_golden_stick.ascend import Ascend
from gs_golden_stick.folder import GoldenStick
from gs_golden_stick.network import GoldenStickCkpt, GoldenStickNetwork

__all__ = ["Ascend", "GoldenStick", "GoldenStickCkpt", "GoldenStickNetwork"]
