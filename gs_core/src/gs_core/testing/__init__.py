"""The conformance kit: suites of tests that a plugin runs on itself, and a toy model to run anything on.

A test file of a plugin is five lines::

    import pytest
    from gs_core.testing import AlgorithmSuite

    class TestHalfway(AlgorithmSuite):
        @pytest.fixture
        def algorithm(self):
            return "halfway"

and likewise ``AdapterSuite``, ``FormatSuite`` and ``KernelSuite``, and ``CacheSuite`` for an algorithm that treats
KV caches. Gaps that a plugin knows of are declared, with
reasons: ``known_gaps = {"test_rows_of_zeros_stay_zeros": "issue 12"}``. Needs the extra ``testing`` (pytest).

``HeldLayer`` is a weight to try an algorithm's arithmetic on. Without an installed framework,
``quantize(write_toy(folder), ..., adapter=ToyAdapter())`` runs the whole line.
"""

import pytest

# Before they are imported: a failing assertion shows its values only in modules that pytest rewrote.
SUITES = ("adapter", "algorithm", "cache", "format", "kernel", "model", "opened", "running", "transforms")
pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in SUITES))

from gs_core.testing.adapter import AdapterSuite  # noqa: E402
from gs_core.testing.algorithm import AlgorithmSuite  # noqa: E402
from gs_core.testing.cache import CacheSuite  # noqa: E402
from gs_core.testing.distributions import write_distribution  # noqa: E402
from gs_core.testing.format import FormatSuite  # noqa: E402
from gs_core.testing.held import HeldLayer  # noqa: E402
from gs_core.testing.kernel import KernelSuite  # noqa: E402
from gs_core.testing.model import LiveModelSuite  # noqa: E402
from gs_core.testing.toy import ToyAdapter  # noqa: E402
from gs_core.testing.toy_files import write_toy  # noqa: E402

__all__ = [
    "AdapterSuite",
    "AlgorithmSuite",
    "CacheSuite",
    "FormatSuite",
    "HeldLayer",
    "KernelSuite",
    "LiveModelSuite",
    "ToyAdapter",
    "write_distribution",
    "write_toy",
]
