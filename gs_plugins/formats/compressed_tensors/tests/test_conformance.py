"""What every checkpoint format owes the line."""

import pytest

from gs_core.testing import FormatSuite


class TestCompressedTensors(FormatSuite):
    @pytest.fixture
    def checkpoint_format(self) -> str:
        return "compressed_tensors"
