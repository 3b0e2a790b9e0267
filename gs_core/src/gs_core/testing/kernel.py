"""What every kernel owes the line."""

from typing import Any, ClassVar

import numpy as np
import pytest

from gs_core import numerics
from gs_core.interfaces import Request
from gs_core.testing.suite import SCHEMES, Suite, installed, maker, numpy, plugin, same_namespace, sentence
from gs_schemas import QuantizationScheme

RUN_TIME_SCHEMES = {
    name: scheme for name, scheme in SCHEMES.items() if scheme.inputs is None or scheme.inputs.dynamic is True
}
"""Those that need no parameters found beforehand."""

each_scheme = pytest.mark.parametrize("scheme", RUN_TIME_SCHEMES.values(), ids=RUN_TIME_SCHEMES)


class KernelSuite(Suite):
    """Tests of a kernel against float64 arithmetic on what its codes stand for.

    The fixture is its installed name, its class, or an instance::

        class TestMine(KernelSuite):
            device = "npu"

            @pytest.fixture
            def kernel(self):
                return "mine"
    """

    device: ClassVar[str] = "cpu"
    library: ClassVar[str] = "numpy"
    """The array library it computes in, ``numpy`` or ``torch``."""
    shape: ClassVar[tuple[int, int]] = (96, 64)
    tolerance: ClassVar[float] = 1e-5
    """Error of an output relative to the root mean square of them all."""

    @pytest.fixture
    def kernel(self) -> Any:
        raise NotImplementedError("give the suite a fixture `kernel`: a name, a class or an instance")

    @pytest.fixture
    def tested(self, kernel: Any) -> Any:
        return plugin("kernel", kernel)

    def claims(self, tested: Any, scheme: QuantizationScheme) -> bool:
        refusal = tested.unsupported(Request(scheme, self.shape, self.device))
        assert refusal is None or sentence(refusal), "a refusal says why"
        return refusal is None

    def array(self, values: np.ndarray) -> Any:
        assert installed((self.library,)), f"{self.library} is not installed"
        where = {} if self.library == "numpy" else {"device": self.device}
        return maker(self.library)(values, **where)

    def packed(self, tested: Any, scheme: QuantizationScheme) -> tuple[Any, np.ndarray]:
        """A random weight as the kernel holds it, and what it stands for."""
        assert scheme.weights is not None
        weight = np.random.default_rng(0).standard_normal(self.shape).astype(np.float32)
        tensor = numerics.quantize_weight(self.array(weight), scheme.weights, "float32")
        return tested.pack(tensor, scheme), numpy(numerics.dequantize(tensor))

    def close(self, got: np.ndarray, wanted: np.ndarray) -> bool:
        return bool(np.abs(got - wanted).max() <= self.tolerance * np.sqrt((wanted**2).mean()))

    def test_it_serves_some_request(self, tested: Any) -> None:
        assert any(self.claims(tested, scheme) for scheme in RUN_TIME_SCHEMES.values())

    def test_it_refuses_what_has_no_weight_scheme(self, tested: Any) -> None:
        assert not self.claims(tested, QuantizationScheme())

    def test_its_priority_is_a_number(self, tested: Any) -> None:
        assert isinstance(tested.priority, int)

    @each_scheme
    def test_every_claimed_scheme_is_computed(self, tested: Any, scheme: QuantizationScheme) -> None:
        if not self.claims(tested, scheme):
            return
        packed, weight = self.packed(tested, scheme)
        for leading in [(1,), (5,), (2, 3)]:
            x = np.random.default_rng(1).standard_normal((*leading, self.shape[1])).astype(np.float32)
            seen = x if scheme.inputs is None else numerics.fake_quantize(x, scheme.inputs)
            given = self.array(x.copy())
            got = tested.linear(given, packed)
            assert got.shape == (*leading, self.shape[0])
            assert got.dtype == given.dtype
            assert same_namespace(got, given)
            assert np.array_equal(numpy(given), x), "the input is left as it was"
            assert self.close(numpy(got), seen.astype(np.float64) @ weight.astype(np.float64).T)

    def test_twice_is_the_same(self, tested: Any) -> None:
        scheme = next(scheme for scheme in RUN_TIME_SCHEMES.values() if self.claims(tested, scheme))
        packed, _ = self.packed(tested, scheme)
        x = self.array(np.random.default_rng(1).standard_normal((3, self.shape[1])).astype(np.float32))
        assert np.array_equal(numpy(tested.linear(x, packed)), numpy(tested.linear(x, packed)))
