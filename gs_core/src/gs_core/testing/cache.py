"""What every algorithm that treats KV caches owes the line."""

from typing import Any, ClassVar

import numpy as np
import pytest

from gs_core import numerics
from gs_core.arrays import dtype_name
from gs_core.comparing import relative_error
from gs_core.interfaces import Accumulator, CacheInfo, Site, SiteKind, StaticInput
from gs_core.stages import check_hooks, implements
from gs_core.testing.suite import Suite, installed, maker, numpy, plugin, same_namespace, sentence
from gs_schemas import QuantizationArgs, QuantizationScheme, SchemaError, Strict, validate

HEADS, SIZE = 2, 16

CACHES: dict[str, QuantizationArgs] = {
    name: QuantizationArgs.model_validate(args)
    for name, args in {
        "int8 tensor": {"format": "int8", "granularity": "tensor"},
        "int8 tensor mse": {"format": "int8", "granularity": "tensor", "observer": "mse"},
        "int8 head": {"format": "int8", "granularity": "head"},
        "int8 channel": {"format": "int8", "granularity": "channel"},
        "int8 channel asym": {"format": "int8", "granularity": "channel", "symmetric": False},
        "int4 channel mse": {"format": "int4", "granularity": "channel", "observer": "mse"},
        "fp8 tensor": {"format": "fp8_e4m3", "granularity": "tensor"},
        "fp8 head": {"format": "fp8_e4m3", "granularity": "head"},
        "int8 token": {"format": "int8", "granularity": "token", "dynamic": True},
        "int8 token and head": {"format": "int8", "granularity": "head", "dynamic": True},
        "int4 group asym": {
            "format": "int4",
            "granularity": "group",
            "group_size": 8,
            "symmetric": False,
            "dynamic": True,
        },
    }.items()
}
"""Numbers for caches, on which suites try what a plugin claims to support."""

each_cache = pytest.mark.parametrize("args", CACHES.values(), ids=CACHES)


KINDS: tuple[SiteKind, ...] = ("unrotated_key", "key", "value")


def cache_info(name: str = "attention", dtype: str = "bfloat16", kinds: tuple[SiteKind, ...] = KINDS) -> CacheInfo:
    """An attention module of two heads of sixteen channels."""
    return CacheInfo(name, 0, tuple(Site(f"{name}.{kind}", HEADS * SIZE, (), kind, HEADS, dtype) for kind in kinds))


class CacheSuite(Suite):
    """Tests of an algorithm on one site of a cache, under all numbers that it does not refuse.

    The fixture is as ``AlgorithmSuite``'s.
    """

    namespaces: ClassVar[tuple[str, ...]] = ("numpy", "array_api_strict", "torch")

    slack: ClassVar[float] = 1.05
    """How much larger than that of the full range the error of what is read back may be."""

    @pytest.fixture
    def algorithm(self) -> Any:
        raise NotImplementedError("give the suite a fixture `algorithm`: a name, a class or an instance")

    @pytest.fixture
    def tested(self, algorithm: Any) -> Any:
        return plugin("algorithm", algorithm)

    @pytest.fixture
    def cached(self) -> np.ndarray:
        """Keys with a few large channels, as those of real models have, ``(tokens, features)``."""
        random = np.random.default_rng(0)
        scale = np.where(np.arange(HEADS * SIZE) % 11 == 3, 20.0, 1.0)
        return (random.standard_normal((96, HEADS * SIZE)) * scale + 0.5).astype(np.float32)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "library" in metafunc.fixturenames:
            metafunc.parametrize("library", installed(self.namespaces))

    def sites(self, tested: Any, args: QuantizationArgs, dtype: str = "bfloat16") -> list[Site]:
        """Those that it treats; none when it refuses these numbers."""
        cache = cache_info(dtype=dtype)
        refusal = tested.unsupported_cache(cache, args)
        assert refusal is None or sentence(refusal), "a refusal says why"
        return [] if refusal else [site for site in cache.sites if site.kind in tested.kinds]

    def observe(self, tested: Any, site: Site, args: QuantizationArgs, *batches: Any) -> StaticInput | None:
        accumulator = tested.observe(site=site, scheme=QuantizationScheme(kv_cache=args))
        assert (accumulator is None) == bool(args.dynamic), "static scales need data, and dynamic ones none"
        if accumulator is None:
            return None
        assert isinstance(accumulator, Accumulator)
        for batch in batches:
            accumulator.update(batch)
        result = accumulator.result()
        assert isinstance(result, StaticInput)
        return result

    def error(self, x: Any, args: QuantizationArgs, static: StaticInput | None) -> float:
        parameters = (static.scale, static.zero_point) if static else ()
        return relative_error(x, numerics.fake_quantize_cache(x, HEADS, args, *parameters))

    # --- what it looks like ----------------------------------------------------------------------------------

    def test_hooks_are_well_formed(self, tested: Any) -> None:
        check_hooks(tested)
        assert implements(tested, "observe")
        assert "value" in tested.kinds
        assert {*tested.kinds} & {"key", "unrotated_key"}

    def test_options_are_validated(self, tested: Any) -> None:
        assert issubclass(tested.Options, Strict)
        assert isinstance(tested.options, tested.Options)
        with pytest.raises(SchemaError, match="no such field"):
            validate(tested.Options, {"no_such_option": 1}, "options")

    def test_it_takes_some_numbers(self, tested: Any) -> None:
        assert any(self.sites(tested, args) for args in CACHES.values()), f"it refuses all of {', '.join(CACHES)}"

    # --- what it finds ---------------------------------------------------------------------------------------

    @each_cache
    def test_scales_have_the_shape_and_dtype_that_the_args_say(
        self, tested: Any, args: QuantizationArgs, cached: np.ndarray, library: str
    ) -> None:
        x = maker(library)(cached)
        dtype = "float32" if library == "array_api_strict" else "bfloat16"  # the standard has no other
        for site in self.sites(tested, args, dtype):
            static = self.observe(tested, site, args, x[:50, :], x[50:, :])
            if static is None:
                continue
            elements = {"tensor": 1, "head": HEADS, "channel": HEADS * SIZE}[args.granularity]
            assert static.scale.shape == (elements,)
            assert dtype_name(static.scale) == dtype
            assert same_namespace(static.scale, x)
            assert (static.zero_point is None) == args.symmetric
            assert static.zero_point is None or static.zero_point.shape == (elements,)

    @each_cache
    def test_what_is_read_back_is_near(self, tested: Any, args: QuantizationArgs, cached: np.ndarray) -> None:
        low, high = cached.min(axis=0), cached.max(axis=0)
        for site in self.sites(tested, args):
            static = self.observe(tested, site, args, cached[:50], cached[50:])
            if static is None:
                assert self.error(cached, args, static) < 2.0 ** (2 - 2 * min(args.bits, 5))
                continue
            widest = args.model_copy(update={"observer": "minmax"})
            full = StaticInput(*numerics.cache_params(low, high, cached, HEADS, widest, "float32"))
            assert self.error(cached, args, static) <= self.slack * self.error(cached, args, full)

    @each_cache
    def test_twice_is_the_same(self, tested: Any, args: QuantizationArgs, cached: np.ndarray) -> None:
        for site in self.sites(tested, args):
            one, other = (self.observe(tested, site, args, cached) for _ in range(2))
            assert one is None or (other is not None and np.array_equal(numpy(one.scale), numpy(other.scale)))

    @each_cache
    def test_channels_that_are_always_zero(self, tested: Any, args: QuantizationArgs, cached: np.ndarray) -> None:
        cached[:, :SIZE] = 0.0
        for site in self.sites(tested, args):
            static = self.observe(tested, site, args, cached)
            parameters = (static.scale, static.zero_point) if static else ()
            back = numerics.fake_quantize_cache(cached, HEADS, args, *parameters)
            assert np.isfinite(back).all()
            assert not back[:, :SIZE].any()
