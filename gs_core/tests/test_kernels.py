"""Choosing a kernel: the best that does not object, with every objection kept."""

import pytest

from gs_core import Kernel, PlanError, kernels
from gs_core.interfaces import Request
from gs_core.kernels import Choice, Reference
from gs_schemas import SCHEMES, QuantizationArgs, QuantizationScheme

REQUEST = Request(SCHEMES["W4A16"], (64, 128), "npu")


def kernel(priority, objection):
    members = {
        "priority": priority,
        "unsupported": lambda self, request: objection,
        "pack": lambda self, tensor, scheme: None,
        "linear": lambda self, x, packed: x,
    }
    return type("Fixed", (Kernel,), members)()


def test_the_highest_priority_without_an_objection():
    some = {
        "slow": kernel(0, None),
        "fast": kernel(5, "needs a chip"),
        "fair": kernel(1, None),
        "even": kernel(1, None),
    }
    assert kernels.choose(REQUEST, some) == Choice("even", (("fast", "needs a chip"),))


def test_every_objection_is_in_the_error():
    with pytest.raises(PlanError) as caught:
        kernels.choose(REQUEST, {"slow": kernel(0, "no int4"), "fast": kernel(5, "needs a chip")})
    assert str(caught.value) == "no kernel for W4A16 on npu:\n  fast: needs a chip\n  slow: no int4"


def test_the_reference_is_installed_and_objects_only_to_what_numerics_cannot():
    assert isinstance(kernels.installed()["reference"], Reference)
    fp8 = QuantizationArgs(format="fp8_e4m3")
    for scheme, objection in {
        SCHEMES["W4A16"]: None,
        SCHEMES["W8A8"]: None,
        QuantizationScheme(): "knows integer weights, got float",
        QuantizationScheme(weights=fp8): "knows integer weights, got fp8_e4m3",
        SCHEMES["W8A8"].model_copy(update={"inputs": fp8}): "knows integer activations, got fp8_e4m3",
    }.items():
        assert Reference().unsupported(Request(scheme, (64, 128), "cpu")) == objection


def test_a_broken_kernel_hurts_nobody_else(site):
    site("acme", modules={"acme_kernel": "import no_such_driver"}, kernel="acme = acme_kernel:Fast")
    assert "reference" in kernels.installed()
    assert "acme" not in kernels.installed()
