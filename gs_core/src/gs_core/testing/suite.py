"""What the conformance suites have in common."""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import pytest

from gs_core import discovery
from gs_core.arrays import Array, namespace, to_raw
from gs_core.interfaces import Batch, Block
from gs_schemas import QuantizationArgs, QuantizationScheme


class Suite:
    """A class of tests with one fixture for the plugin to give.

    ``known_gaps`` names tests that the plugin does not pass yet, each with the reason. They are expected to fail:
    one that passes is an error, so the list cannot outlive the gaps. A parametrised test is named as pytest
    prints it, ``test_name[parameter]``, or as a whole.
    """

    known_gaps: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in cls.known_gaps:
            if not hasattr(cls, name.partition("[")[0]):
                raise TypeError(f"{cls.__name__}.known_gaps: the suite has no test named '{name}'")

    @pytest.fixture(autouse=True)
    def _known_gap(self, request: pytest.FixtureRequest) -> None:
        node = request.node
        reason = self.known_gaps.get(node.name) or self.known_gaps.get(node.originalname)
        if reason:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


def plugin(kind: str, given: Any) -> Any:
    """An instance of a plugin given by its installed name, its class, or an instance (to set options)."""
    if isinstance(given, str):
        given = discovery.load(kind, given)
    return given() if isinstance(given, type) else given


def sentence(reason: Any) -> bool:
    """Whether a refusal says something."""
    return isinstance(reason, str) and bool(reason.strip())


def installed(namespaces: tuple[str, ...]) -> list[str]:
    """Those of some array libraries that are here."""
    return [name for name in namespaces if find_spec(name) is not None]


def maker(library: str) -> Any:
    """The ``asarray`` of an array library by its name."""
    return importlib.import_module(library).asarray


def numpy(x: Array) -> np.ndarray:
    """The numbers of an array of any namespace."""
    return x if isinstance(x, np.ndarray) else np.from_dlpack(x)


def same_namespace(x: Array, y: Array) -> bool:
    return namespace(x) is namespace(y)


def forward(block: Block, batch: Batch, on_site: Any = None) -> np.ndarray:
    """The hidden state that a block makes of a batch."""
    return numpy(block.run(*batch, on_site)["hidden"])


def after(block: Block, batch: Batch) -> Batch:
    """A batch as the block after this one receives it."""
    tokens, previous = batch
    return tokens, {name: to_raw(array) for name, array in block.run(tokens, previous).items()}


def _args(format: str, granularity: Any, **more: Any) -> QuantizationArgs:
    sizes: dict[str, Any] = {"group": {"group_size": 32}, "block": {"block_size": (32, 32)}}
    return QuantizationArgs(format=format, granularity=granularity, **sizes.get(granularity, {}), **more)


WEIGHTS: dict[str, QuantizationArgs] = {
    "int4 group": _args("int4", "group"),
    "int4 group asym": _args("int4", "group", symmetric=False),
    "int4 group mse": _args("int4", "group", observer="mse"),
    "int4 channel": _args("int4", "channel"),
    "int4 channel asym": _args("int4", "channel", symmetric=False),
    "int4 block": _args("int4", "block"),
    "int8 tensor": _args("int8", "tensor"),
    "int8 channel": _args("int8", "channel"),
    "int2 group": _args("int2", "group"),
    "int3 channel": _args("int3", "channel"),
    "uint4 group": _args("uint4", "group", symmetric=False),
    "uint8 channel": _args("uint8", "channel", symmetric=False),
}
"""Numbers for weights, on which every suite tries what a plugin claims to support."""

INPUTS: dict[str, QuantizationArgs] = {
    "dynamic token": _args("int8", "token", dynamic=True),
    "static tensor": _args("int8", "tensor"),
    "static tensor asym": _args("int8", "tensor", symmetric=False),
}

SCHEMES: dict[str, QuantizationScheme] = {
    **{name: QuantizationScheme(weights=weights) for name, weights in WEIGHTS.items()},
    **{
        f"int8 channel, {name}": QuantizationScheme(weights=WEIGHTS["int8 channel"], inputs=inputs)
        for name, inputs in INPUTS.items()
    },
    "int4 group, dynamic token": QuantizationScheme(weights=WEIGHTS["int4 group"], inputs=INPUTS["dynamic token"]),
}
"""Those numbers with floating-point activations, and some of them with quantized ones."""

each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
