"""Plugins with one fault each, under the suite that must find it. ``test_suites.py`` runs the tests named here.

``fails`` names the tests that the fault breaks.
"""

import dataclasses
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pytest

from gs_core import hookimpl
from gs_core.arrays import astype
from gs_core.interfaces import ChannelScale, LayerNumbers
from gs_core.kernels import Reference
from gs_core.testing import AdapterSuite, AlgorithmSuite, FormatSuite, KernelSuite, ToyAdapter, write_toy
from gs_core.testing.plugins import Levelling, Plain, Rounding
from gs_core.testing.toy import ToyModel
from gs_core.testing.toy_block import ToyBlock, ToyLayer

# --- algorithms ----------------------------------------------------------------------------------------------


class Algorithm(AlgorithmSuite):
    """What is tested is the plugin inside the class."""

    namespaces = ("numpy", "array_api_strict")
    fails: ClassVar[set[str]] = set()

    @pytest.fixture
    def algorithm(self):
        return type(self).Faulty


class TestDefault(Algorithm):
    fails = {"test_hooks_have_no_defaults"}

    class Faulty(Rounding):
        @hookimpl
        def quantize(self, layers, observed=None):
            return super().quantize(layers)


class TestMisspelt(Algorithm):
    fails = {"test_hooks_are_well_formed"}

    class Faulty(Rounding):
        @hookimpl
        def quantise(self, layers): ...


class TestMumbling(Algorithm):
    fails = {"test_no_claimed_scheme_is_worse_than_rounding[int4 group]"}

    class Faulty(Rounding):
        def unsupported(self, layer, scheme):
            return ""


class TestRefusing(Algorithm):
    fails = {"test_it_takes_some_scheme"}

    class Faulty(Rounding):
        def unsupported(self, layer, scheme):
            return "no"


class TestCoarse(Algorithm):
    fails = {"test_no_claimed_scheme_is_worse_than_rounding[int8 channel]", "test_input_channels_that_are_always_zero"}

    class Faulty(Rounding):
        @hookimpl
        def quantize(self, layers):
            return {n: dataclasses.replace(t, codes=t.codes // 2 * 2) for n, t in super().quantize(layers).items()}


class TestOffTheGrid(Algorithm):
    fails = {"test_every_claimed_scheme_gives_codes_on_its_grid[int4 channel]"}

    class Faulty(Rounding):
        @hookimpl
        def quantize(self, layers):
            return {n: dataclasses.replace(t, codes=t.codes * 2) for n, t in super().quantize(layers).items()}


class TestWrongScaleDtype(Algorithm):
    fails = {"test_every_claimed_scheme_gives_codes_on_its_grid[int8 tensor]"}

    class Faulty(Rounding):
        @hookimpl
        def quantize(self, layers):
            found = super().quantize(layers)
            return {n: dataclasses.replace(t, scale=astype(t.scale, "float64")) for n, t in found.items()}


class TestRandom(Algorithm):
    fails = {"test_twice_is_the_same"}
    random = np.random.default_rng()

    class Faulty(Rounding):
        @hookimpl
        def quantize(self, layers):
            for layer in layers:
                noise = TestRandom.random.uniform(0.99, 1.01, layer.shape).astype(np.float32)
                layer.set_weight(layer.weight() * noise)
            return super().quantize(layers)


class TestMeddling(Algorithm):
    fails = {"test_the_float_block_computes_what_it_did"}

    class Faulty(Rounding):
        @hookimpl
        def quantize(self, layers):
            layers[0].set_weight(layers[0].weight() * 0.5)
            return super().quantize(layers)


class TestNumPyOnly(Algorithm):
    fails = {"test_arrays_stay_in_their_library[array_api_strict]"}

    class Faulty(Rounding):
        @hookimpl
        def quantize(self, layers):
            return {n: dataclasses.replace(t, codes=np.asarray(t.codes)) for n, t in super().quantize(layers).items()}


class TestNeedy(Algorithm):
    """Relies on having seen every site."""

    fails = {f"test_a_site_that_no_token_reached[{layer}]" for layer in ("q", "o", "gate", "down")}

    class Faulty(Levelling):
        @hookimpl
        def smooth(self, block, observed):
            return [
                ChannelScale(fold, self._scale(fold, dict(observed)))
                for fold in block.folds()
                if observed[fold.sites[0]].any()
            ]


class TestDividing(Algorithm):
    """Divides by what may be zero."""

    fails = {"test_rows_of_zeros_stay_zeros", "test_input_channels_that_are_always_zero"}

    class Faulty(Levelling):
        @hookimpl
        def smooth(self, block, observed):
            return [
                ChannelScale(f, f.reduce_max([observed[s] for s in f.sites]))
                for f in block.folds()
                if f.sites[0] in observed
            ]

        @hookimpl
        def quantize(self, layers):
            return {n: self._normalised(t) for n, t in Rounding().quantize(layers).items()}

        def _normalised(self, tensor):
            amax = np.abs(tensor.codes).max(axis=1, keepdims=True)
            return dataclasses.replace(tensor, scale=tensor.scale * (amax / amax).astype(np.float32))


class TestBlind(Algorithm):
    """A smoother that smooths nothing."""

    fails = {"test_what_smooths_finds_something_to_smooth"}

    class Faulty(Levelling):
        @hookimpl
        def smooth(self, block):
            return []


class TestCareless(Algorithm):
    """Options that swallow anything."""

    fails = {"test_options_are_validated"}

    class Faulty(Rounding):
        Options = dict


# --- adapters ------------------------------------------------------------------------------------------------


class Adapter(AdapterSuite):
    """``faults`` replace methods of the toy's classes."""

    fails: ClassVar[set[str]] = set()
    faults: ClassVar[dict] = {}

    @pytest.fixture
    def case(self, tmp_path, monkeypatch):
        for (owner, name), fault in self.faults.items():
            monkeypatch.setattr(owner, name, fault)
        folder = write_toy(tmp_path / "toy", hidden=32, intermediate=48)
        return folder, ToyAdapter(), np.random.default_rng(0).integers(0, 256, (2, 12))


def transposed(layer):
    weight = layer._block.read(f"{layer.name}.weight").copy()
    return weight.T.copy() if layer.name.endswith(".q") else weight


class TestTransposed(Adapter):
    """One square layer comes, and goes, the other way round."""

    fails = {
        "test_a_layer_multiplies_by_the_transpose_of_its_weight[first]",
        "test_a_layer_multiplies_by_the_transpose_of_its_weight[last]",
    }
    faults = {
        (ToyLayer, "weight"): transposed,
        (ToyLayer, "set_weight"): lambda layer, weight: layer._block.write(
            f"{layer.name}.weight", weight.T.copy() if layer.name.endswith(".q") else weight
        ),
    }


class TestView(Adapter):
    fails = {"test_weights_are_float32_copies[first]"}
    faults = {(ToyLayer, "weight"): lambda layer: layer._block.read(f"{layer.name}.weight")}


class TestDeafToWeights(Adapter):
    fails = {"test_a_weight_that_is_set_is_computed_with[first]"}
    faults = {(ToyLayer, "set_weight"): lambda layer, weight: None}


run = ToyBlock.run


class TestRepeating(Adapter):
    """Tells of the value's input twice."""

    fails = {"test_each_site_is_seen_once_and_in_order[first]"}
    faults = {
        (ToyBlock, "run"): lambda block, tokens, previous, on_site=None: run(
            block, tokens, previous, on_site and (lambda name, x: (on_site(name, x), on_site(name, x))[1])
        )
    }


class TestIgnoring(Adapter):
    """Tells of activations, and goes on with its own."""

    fails = {"test_what_a_listener_answers_takes_the_place[first]"}
    faults = {
        (ToyBlock, "run"): lambda block, tokens, previous, on_site=None: run(
            block, tokens, previous, on_site and (lambda name, x: (on_site(name, x), None)[1])
        )
    }


class TestNoisy(Adapter):
    fails = {"test_running_twice_is_the_same[first]"}
    faults = {
        (ToyBlock, "run"): lambda block, *arguments: {
            "hidden": run(block, *arguments)["hidden"] + np.random.default_rng().normal(0, 1e-6, 32).astype(np.float32)
        }
    }


verifying = ToyBlock.verifying


@contextmanager
def leaving_traces(block):
    with verifying(block):
        yield
    block.weights = {name: value * np.float32(1.5) for name, value in block.weights.items()}


class TestLeavingTraces(Adapter):
    """Verification changes the weights."""

    fails = {"test_verifying_leaves_the_block_as_it_was[first]"}
    faults = {(ToyBlock, "verifying"): leaving_traces}


folds = ToyBlock.folds


class TestWrongGroups(Adapter):
    """Heads that share a value are taken to lie apart."""

    fails = {"test_folds_keep_the_function[first]"}
    faults = {
        (ToyBlock, "folds"): lambda block: [
            f if f.index is None else dataclasses.replace(f, index=np.tile(np.arange(f.channels), 2))
            for f in folds(block)
        ]
    }


class TestTooMany(Adapter):
    """Says that a norm reaches the sites of the other one."""

    fails = {"test_folds_keep_the_function[first]"}
    faults = {
        (ToyBlock, "folds"): lambda block: [
            dataclasses.replace(folds(block)[0], sites=(f"{block.name}.q.input", f"{block.name}.gate.input"))
        ]
    }


apply = ToyBlock.apply


def half_undone(block, transform):
    applied, undo = apply(block, transform)
    kept = dict(block.weights)

    def badly():
        undo()
        block.weights = block.weights | {n: w for n, w in kept.items() if "down" in n}

    return applied, badly


class TestHalfUndone(Adapter):
    fails = {"test_undoing_a_fold_restores_every_bit[first]"}
    faults = {(ToyBlock, "apply"): half_undone}


rest = ToyBlock.rest


class TestForgetting(Adapter):
    """Norms are nobody's."""

    fails = {"test_what_is_not_quantized_is_written_bit_for_bit"}
    faults = {
        (ToyBlock, "rest"): lambda block, quantized: ((n, t) for n, t in rest(block, quantized) if "norm" not in n)
    }


class TestStale(Adapter):
    """What a fold changed is written as it was."""

    fails = {"test_a_folded_block_is_written_as_it_computes"}
    faults = {
        (ToyBlock, "rest"): lambda block, quantized: (
            (n, t) for n, t in block.stored.items() if n.removesuffix(".weight") not in quantized
        )
    }


class TestTwice(Adapter):
    fails = {"test_every_tensor_is_written_once"}
    faults = {(ToyModel, "rest"): lambda model: iter(model.checkpoint.tensors.items())}


class TestEager(Adapter):
    fails = {"test_it_plans_without_reading_a_weight"}
    faults = {(ToyModel, "vocabulary"): lambda model: len(model.read("embed.weight"))}


class TestConstant(Adapter):
    fails = {"test_other_weights_have_another_fingerprint"}
    faults = {(ToyModel, "fingerprint"): lambda model: "toy"}


class TestGreedy(Adapter):
    fails = {"test_it_refuses_folders_that_are_not_for_it"}
    faults = {(ToyAdapter, "refuses"): lambda adapter, folder: None}


class TestShifted(Adapter):
    """Losses of the token itself."""

    fails = {"test_losses_are_those_of_the_next_token"}
    faults = {
        (ToyModel, "losses"): lambda model, tokens, last, losses=ToyModel.losses: losses(
            model, np.roll(tokens, 1, axis=1), last
        )
    }


class TestFromTheStart(Adapter):
    """Logits of the first positions, whichever were asked for."""

    fails = {"test_logits_of_some_positions_are_those_of_all"}
    faults = {
        (
            ToyModel,
            "logits",
        ): lambda model, tokens, last, windows=slice(None), positions=slice(None), of=ToyModel.logits: of(
            model, tokens, last, windows
        )[:, : None if positions.stop is None else positions.stop - positions.start]
    }


# --- formats -------------------------------------------------------------------------------------------------


class Format(FormatSuite):
    fails: ClassVar[set[str]] = set()

    @pytest.fixture
    def checkpoint_format(self):
        return type(self).Faulty


class TestLossy(Format):
    fails = {"test_scales_of_every_dtype[float32]"}

    class Faulty(Plain):
        @hookimpl
        def pack(self, tensor, inputs, layout):
            return super().pack(dataclasses.replace(tensor, scale=astype(tensor.scale, "float16")), inputs, layout)


class TestSymmetric(Format):
    """Forgets zero points."""

    fails = {
        "test_every_claimed_scheme_comes_back_bit_for_bit[int4 channel asym]",
        "test_every_claimed_scheme_comes_back_bit_for_bit[int8 channel, static tensor asym]",
    }

    class Faulty(Plain):
        @hookimpl
        def pack(self, tensor, inputs, layout):
            arrays = super().pack(tensor, inputs, layout)
            return {name: array for name, array in arrays.items() if "zero_point" not in name}


class TestMisread(Format):
    """Reads another scheme than it wrote."""

    fails = {"test_every_claimed_scheme_comes_back_bit_for_bit[int8 channel, dynamic token]"}

    class Faulty(Plain):
        def read(self, checkpoint, config):
            checkpoint, numbers = super().read(checkpoint, config)
            return checkpoint, {
                n: LayerNumbers(known.scheme.model_copy(update={"inputs": None}), known.inputs)
                for n, known in numbers.items()
            }


class TestSecretive(Format):
    """Does not say all that it wrote."""

    fails = {"test_the_folder_is_a_checkpoint"}

    class Faulty(Plain):
        @hookimpl
        def export(self, output):
            return [name for name in super().export(output) if name != "config.json"]


class TestTimestamped(Format):
    fails = {"test_written_again_it_has_the_same_bytes"}

    class Faulty(Plain):
        @hookimpl
        def export(self, output):
            files = super().export(output)
            if output.final:
                (output.folder / "tokenizer.json").write_text(str(np.random.default_rng().random()))
            return files


class TestCredulous(Format):
    fails = {"test_a_config_that_says_nothing_is_refused"}

    class Faulty(Plain):
        def read(self, checkpoint, config):
            return super().read(checkpoint, {"quantization_config": {"layers": {}} | config["quantization_config"]})


# --- kernels -------------------------------------------------------------------------------------------------


class Kernel(KernelSuite):
    fails: ClassVar[set[str]] = set()

    @pytest.fixture
    def kernel(self):
        return type(self).Faulty


class TestFloatActivations(Kernel):
    fails = {"test_every_claimed_scheme_is_computed[int8 channel, dynamic token]"}

    class Faulty(Reference):
        def pack(self, tensor, scheme):
            return super().pack(tensor, scheme.model_copy(update={"inputs": None}))


class TestInPlace(Kernel):
    fails = {"test_every_claimed_scheme_is_computed[int8 channel]"}

    class Faulty(Reference):
        def linear(self, x, packed):
            y = super().linear(x, packed)
            x *= 0
            return y


class TestFlat(Kernel):
    """Loses the leading dimensions."""

    fails = {"test_every_claimed_scheme_is_computed[int4 block]"}

    class Faulty(Reference):
        def linear(self, x, packed):
            return super().linear(x.reshape(-1, x.shape[-1]), packed)


class TestAnything(Kernel):
    fails = {"test_it_refuses_what_has_no_weight_scheme"}

    class Faulty(Reference):
        def unsupported(self, request):
            return None


# --- known gaps ----------------------------------------------------------------------------------------------


class TestKnownGap(Kernel):
    """A gap that is declared is expected; the others of the parametrised test still have to pass."""

    known_gaps = {"test_every_claimed_scheme_is_computed[int8 channel, dynamic token]": "computes in float"}
    Faulty = TestFloatActivations.Faulty


class TestClosedGap(Kernel):
    """A gap that is declared, and is none."""

    known_gaps = {"test_twice_is_the_same": "was random once"}
    fails = {"test_twice_is_the_same"}
    Faulty = Reference
