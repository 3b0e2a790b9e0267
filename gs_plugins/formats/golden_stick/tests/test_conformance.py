"""What every checkpoint format owes the line."""

from pathlib import Path
from typing import Any

import pytest

from gs_core.storage import write_json
from gs_core.testing import FormatSuite


class DescribedSuite(FormatSuite):
    """Says how its layers are computed in a file beside config.json."""

    def silence(self, tested: Any, folder: Path) -> dict[str, Any]:
        write_json(folder / tested.description, {})
        return {}


class TestGoldenStick(DescribedSuite):
    @pytest.fixture
    def checkpoint_format(self) -> str:
        return "golden_stick"


class TestGoldenStickNetwork(DescribedSuite):
    @pytest.fixture
    def checkpoint_format(self) -> str:
        return "golden_stick_network"


class TestGoldenStickCkpt(DescribedSuite):
    @pytest.fixture
    def checkpoint_format(self) -> str:
        return "golden_stick_ckpt"


class TestAscend(DescribedSuite):
    @pytest.fixture
    def checkpoint_format(self) -> str:
        return "ascend"
