"""The core imports no framework, whatever is installed beside it."""

import subprocess
import sys

FRAMEWORKS = {"torch", "transformers", "mindspore", "tensorflow", "jax", "compressed_tensors", "safetensors"}


def loaded(code):
    """The top-level modules that a fresh interpreter holds after running some code."""
    run = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    names = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    return {name.split(".")[0] for name in names}


def test_the_core_and_all_its_names():
    modules = loaded("import gs_core\nfor name in gs_core.__all__: getattr(gs_core, name)")
    assert "gs_core" in modules
    assert not modules & FRAMEWORKS


def test_the_conformance_kit():
    modules = loaded("import gs_core.testing, gs_core.testing.plugins")
    assert "pytest" in modules
    assert not modules & FRAMEWORKS


def test_the_core_needs_no_pytest():
    assert "pytest" not in loaded("import gs_core\nfor name in gs_core.__all__: getattr(gs_core, name)")


def test_every_public_name_is_what_it_says():
    import gs_core
    from gs_core import api, evaluation, hookspecs

    assert gs_core.quantize is api.quantize, "the call, not the hook of that name"
    assert gs_core.plan is api.plan
    assert gs_core.evaluate is evaluation.evaluate
    assert gs_core.hookimpl is hookspecs.hookimpl
