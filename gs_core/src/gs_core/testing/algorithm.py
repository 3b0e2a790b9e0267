"""What every algorithm owes the line."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

from gs_core.arrays import dtype_name
from gs_core.comparing import channel_error
from gs_core.interfaces import Batch
from gs_core.numerics import code_dtype
from gs_core.stages import HOOKS, check_hooks, implements
from gs_core.testing.plugins import Rounding
from gs_core.testing.suite import (
    SCHEMES,
    Suite,
    each_scheme,
    forward,
    installed,
    maker,
    numpy,
    plugin,
    same_namespace,
    sentence,
)
from gs_core.testing.toy import ToyAdapter
from gs_core.testing.toy_block import ToyBlock
from gs_core.testing.toy_files import write_toy
from gs_core.testing.transforms import MAX_CHANNEL_ERROR
from gs_core.testing.treatment import rounded, run_deaf, treat
from gs_schemas import QuantizationScheme, SchemaError, Strict, validate

NewBlock = Callable[..., ToyBlock]
"""A fresh first block of the toy; its argument is what makes its arrays."""


class AlgorithmSuite(Suite):
    """Tests of an algorithm on a block of the toy, under every scheme that it does not refuse.

    The fixture is its installed name, its class, or an instance with the options to test::

        class TestHalfway(AlgorithmSuite):
            @pytest.fixture
            def algorithm(self):
                return "halfway"

    An algorithm that does not quantize is followed by plain rounding.
    """

    namespaces: ClassVar[tuple[str, ...]] = ("numpy", "array_api_strict", "torch")
    """Array libraries that it takes. Those that are installed are tried, the first one by every test."""

    slack: ClassVar[float] = 1.05
    """How much larger than plain rounding's the error of the block's output may be."""

    slack_of_few_tokens: ClassVar[float] = 1.5
    """The same where calibration is a token or two, whose error is mostly chance."""

    cascades: ClassVar[bool] = False
    """Whether layers make up for the codes of layers before: then one that falls otherwise, at a tie, changes all that
    follow, and another array library need only give codes that are as good."""

    @pytest.fixture
    def algorithm(self) -> Any:
        raise NotImplementedError("give the suite a fixture `algorithm`: a name, a class or an instance")

    @pytest.fixture
    def tested(self, algorithm: Any) -> Any:
        return plugin("algorithm", algorithm)

    @pytest.fixture
    def new_block(self, tmp_path: Any) -> NewBlock:
        sizes = {"hidden": 64, "intermediate": 96, "blocks": 1}
        folder = write_toy(tmp_path / "toy", dtype="float32", **sizes)

        def new(asarray: Any = None) -> ToyBlock:
            asarray = asarray or maker(installed(self.namespaces)[0])
            return ToyAdapter(asarray).open(folder, "cpu").block(0, self.batches[0])

        return new

    @property
    def batches(self) -> list[Batch]:
        random = np.random.default_rng(0)
        return [(random.integers(0, 256, (2, 48)), None) for _ in range(2)]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "library" in metafunc.fixturenames:
            metafunc.parametrize("library", installed(self.namespaces))

    def claims(self, tested: Any, block: ToyBlock, scheme: QuantizationScheme) -> bool:
        refusals = [tested.unsupported(layer.info, scheme) for layer in block.layers.values()]
        assert all(refusal is None or sentence(refusal) for refusal in refusals), "a refusal says why"
        return not any(refusals)

    @pytest.fixture
    def usual(self, tested: Any, new_block: NewBlock) -> list[QuantizationScheme]:
        """One claimed scheme with floating-point activations, and one with quantized ones."""
        claimed = [scheme for scheme in SCHEMES.values() if self.claims(tested, new_block(), scheme)]
        kinds = {scheme.inputs is None: scheme for scheme in reversed(claimed)}
        return list(kinds.values())

    def compare(
        self, tested: Any, new_block: NewBlock, scheme: QuantizationScheme, batches: list[Batch], slack: float
    ) -> None:
        """Treat a block, and hold the error of its output against plain rounding's."""
        wanted = [forward(new_block(), batch) for batch in batches]
        errors = []
        for algorithm in (tested, Rounding()):
            treated = treat(algorithm, new_block(), scheme, batches)
            got = [treated.output(batch) for batch in batches]
            assert all(np.isfinite(output).all() for output in got), "the output is finite"
            errors.append(sum(float(((g - w) ** 2).sum()) for g, w in zip(got, wanted, strict=True)))
        assert errors[0] <= slack * errors[1] + 1e-12, "its squared error, and that of plain rounding"

    # --- what it looks like ----------------------------------------------------------------------------------

    def test_hooks_are_well_formed(self, tested: Any) -> None:
        check_hooks(tested)
        assert implements(tested, "quantize") or implements(tested, "smooth"), "it does something"

    def test_hooks_have_no_defaults(self, tested: Any) -> None:
        """An argument with a default may never be passed: pluggy's versions differ."""
        for hook in filter(lambda hook: implements(tested, hook), HOOKS):
            parameters = inspect.signature(getattr(tested, hook)).parameters.values()
            assert [p.name for p in parameters if p.default is not p.empty] == [], hook

    def test_options_are_validated(self, tested: Any) -> None:
        assert issubclass(tested.Options, Strict)
        assert isinstance(tested.options, tested.Options)
        with pytest.raises(SchemaError, match="no such field"):
            validate(tested.Options, {"no_such_option": 1}, "options")

    def test_it_takes_some_scheme(self, usual: list[QuantizationScheme]) -> None:
        assert usual, f"it refuses all of {', '.join(SCHEMES)}"

    # --- what it computes ------------------------------------------------------------------------------------

    @each_scheme
    def test_every_claimed_scheme_gives_codes_on_its_grid(
        self, tested: Any, new_block: NewBlock, scheme: QuantizationScheme
    ) -> None:
        block, args = new_block(), scheme.weights
        assert args is not None
        if not self.claims(tested, block, scheme):
            return
        for name, tensor in treat(tested, block, scheme, self.batches).tensors.items():
            rows, columns = shape = block.layers[name].shape
            height, width = args.block_size or (0, 0)
            scales = {
                "tensor": (1, 1),
                "channel": (rows, 1),
                "group": (rows, columns // (args.group_size or columns)),
                "block": (rows // (height or rows), columns // (width or columns)),
            }
            assert tensor.args == args
            assert tensor.shape == shape
            assert dtype_name(tensor.codes) == code_dtype(args)
            assert args.number.minimum <= numpy(tensor.codes).min()
            assert numpy(tensor.codes).max() <= args.number.maximum
            assert tensor.scale.shape == scales[args.granularity]
            assert dtype_name(tensor.scale) == "float32", "the scale has the dtype it is stored in"
            assert np.isfinite(numpy(tensor.scale)).all()
            assert (numpy(tensor.scale) != 0).all()
            assert (tensor.zero_point is None) == args.symmetric
            if tensor.zero_point is not None:
                assert tensor.zero_point.shape == tensor.scale.shape
                assert tensor.zero_point.dtype == tensor.codes.dtype
                assert args.number.minimum <= numpy(tensor.zero_point).min()
                assert numpy(tensor.zero_point).max() <= args.number.maximum

    @each_scheme
    def test_no_claimed_scheme_is_worse_than_rounding(
        self, tested: Any, new_block: NewBlock, scheme: QuantizationScheme
    ) -> None:
        if self.claims(tested, new_block(), scheme):
            self.compare(tested, new_block, scheme, self.batches, self.slack)

    def test_the_float_block_computes_what_it_did(
        self, tested: Any, new_block: NewBlock, usual: list[QuantizationScheme]
    ) -> None:
        """Transforms keep the function, and quantize leaves the weights alone."""
        for scheme in usual:
            block = new_block()
            before = forward(block, self.batches[0])
            treat(tested, block, scheme, self.batches)
            assert channel_error(before, forward(block, self.batches[0])) <= MAX_CHANNEL_ERROR

    def test_what_smooths_finds_something_to_smooth(
        self, tested: Any, new_block: NewBlock, usual: list[QuantizationScheme]
    ) -> None:
        found = [treat(tested, new_block(), scheme, self.batches).transforms for scheme in usual]
        assert any(found) == implements(tested, "smooth")

    def test_twice_is_the_same(self, tested: Any, new_block: NewBlock, usual: list[QuantizationScheme]) -> None:
        for scheme in usual:
            once, again = (treat(tested, new_block(), scheme, self.batches).tensors for _ in range(2))
            for name, tensor in once.items():
                assert np.array_equal(numpy(tensor.codes), numpy(again[name].codes))
                assert np.array_equal(numpy(tensor.scale), numpy(again[name].scale))

    def test_arrays_stay_in_their_library(
        self, tested: Any, new_block: NewBlock, usual: list[QuantizationScheme], library: str
    ) -> None:
        """What it returns is of the library that the weights are of, and hardly depends on it."""
        for scheme in usual:
            found = treat(tested, new_block(maker(library)), scheme, self.batches)
            known = treat(tested, new_block(), scheme, self.batches)
            for name, tensor in found.tensors.items():
                arrays = [tensor.codes, tensor.scale, tensor.zero_point, tensor.group_index]
                assert all(same_namespace(a, found.block.layers[name].weight()) for a in arrays if a is not None)
                assert self.cascades or np.mean(numpy(tensor.codes) == numpy(known.tensors[name].codes)) > 0.99
            if self.cascades:
                wanted = forward(new_block(), self.batches[0])
                errors = [channel_error(wanted, numpy(treated.output(self.batches[0]))) for treated in (found, known)]
                assert errors[0] == pytest.approx(errors[1], rel=0.2)

    # --- what it has to live with ----------------------------------------------------------------------------

    @pytest.mark.parametrize("layer", ["q", "o", "gate", "down"])
    def test_a_site_that_no_token_reached(
        self,
        tested: Any,
        new_block: NewBlock,
        usual: list[QuantizationScheme],
        layer: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for scheme in usual:
            block = new_block()
            monkeypatch.setattr(block, "run", partial(run_deaf, block.run, f"{block.name}.{layer}.input"))
            tensors = treat(tested, block, scheme, self.batches).tensors
            assert all(np.isfinite(rounded(tensor)).all() for tensor in tensors.values())

    def test_input_channels_that_are_always_zero(
        self, tested: Any, new_block: NewBlock, usual: list[QuantizationScheme]
    ) -> None:
        def dead(asarray: Any = None) -> ToyBlock:
            block = new_block(asarray)
            for name, channel in {"mlp_norm": 7, "v": 3, "up": 5}.items():
                block.weights[f"{block.name}.{name}.weight"][channel] = 0.0
            return block

        for scheme in usual:
            self.compare(tested, dead, scheme, self.batches, self.slack)

    def test_an_input_that_is_always_the_same(
        self, tested: Any, new_block: NewBlock, usual: list[QuantizationScheme]
    ) -> None:
        """Its second moments have rank one."""
        for scheme in usual:
            self.compare(tested, new_block, scheme, [(np.full((1, 16), 65), None)], self.slack_of_few_tokens)

    def test_fewer_tokens_than_features(
        self, tested: Any, new_block: NewBlock, usual: list[QuantizationScheme]
    ) -> None:
        for scheme in usual:
            self.compare(tested, new_block, scheme, [(np.array([[65, 66]]), None)], self.slack_of_few_tokens)

    def test_rows_of_zeros_stay_zeros(self, tested: Any, new_block: NewBlock, usual: list[QuantizationScheme]) -> None:
        for scheme in usual:
            block = new_block()
            block.weights[f"{block.name}.q.weight"][:3] = 0.0
            block.weights[f"{block.name}.k.weight"][:] = 0.0
            block.weights[f"{block.name}.gate.weight"][:2] *= 1e-30
            tensors = treat(tested, block, scheme, self.batches).tensors
            assert not rounded(tensors[f"{block.name}.q"])[:3].any()
            assert not rounded(tensors[f"{block.name}.k"]).any()
            assert np.isfinite(rounded(tensors[f"{block.name}.gate"])).all()
