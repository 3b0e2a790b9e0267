"""Calling hooks: on the named plugin alone, with wrappers around it, and no answer of the wrong kind accepted."""

import numpy as np
import pytest

from gs_core import Accumulator, Algorithm, PluginError, QuantizedTensor, hookimpl
from gs_core.interfaces import ChannelScale, Fold, Layer, LayerInfo, Output, Site
from gs_core.stages import Stages, check_hooks, implements
from gs_core.testing.plugins import Maxima, Plain, Rounding
from gs_schemas import SCHEMES, QuantizationArgs

INT8 = QuantizationArgs(format="int8")
SITE = Site("s", 4, ("a",))


class FixedLayer(Layer):
    def weight(self):
        return np.ones(self.shape, np.float32)

    def set_weight(self, weight):
        raise NotImplementedError


LAYERS = [FixedLayer(LayerInfo(name, 0, (2, 4), "s", "float32")) for name in ("a", "b")]


def tensor(shape=(2, 4)):
    return QuantizedTensor(np.zeros(shape, np.int8), np.ones((shape[0], 1), np.float32), None, INT8)


def answering(hook, answer):
    """A plugin with one hook that gives this answer."""

    def implementation(self):
        return answer

    return type("Answering", (), {hook: hookimpl(implementation)})()


def call(hook, answer):
    stages = Stages({"acme": answering(hook, answer)})
    arguments = {
        "observe": (SITE, SCHEMES["W8A8"]),
        "smooth": (None, LAYERS, {}),
        "quantize": (None, LAYERS, {}),
        "pack": (tensor(), None, "plain", None, LAYERS[0].info),
        "export": (Output(None, 0, 1),),
    }[hook]
    return getattr(stages, hook)("acme", *arguments)


BOTH = {"a": tensor(), "b": tensor()}
RIGHT = {
    "observe": [None, Maxima()],
    "smooth": [None, [], (), [ChannelScale(Fold("n", ("s",), 4), np.ones(4))]],
    "quantize": [BOTH, BOTH | {"extra": None}],
    "pack": [{}, {"weight": np.ones(1)}],
    "export": [[], ("model.safetensors",)],
}
WRONG = {
    "observe": ([3, Maxima, {}], "an Accumulator or None"),
    "smooth": ([3, [3], {"s": 1}, ChannelScale(Fold("n", ("s",), 4), np.ones(4))], "a list of transforms"),
    "quantize": (
        [None, [tensor()], {"a": tensor()}, BOTH | {"b": np.ones((2, 4))}, BOTH | {"b": tensor((4, 2))}],
        "a QuantizedTensor for each of a, b",
    ),
    "pack": ([None, np.ones(1), [("weight", 1)]], "named arrays"),
    "export": ([None, "model.safetensors", [3], {"a": 1}], "a list of file names"),
}


@pytest.mark.parametrize(("hook", "answer"), [(hook, answer) for hook in RIGHT for answer in RIGHT[hook]])
def test_a_right_answer_comes_through(hook, answer):
    assert list(call(hook, answer) or ()) == [k for k in answer or () if k != "extra"] if hook != "observe" else True


@pytest.mark.parametrize(
    ("hook", "answer", "expected"), [(hook, answer, e) for hook, (answers, e) in WRONG.items() for answer in answers]
)
def test_a_wrong_answer_names_the_plugin_the_hook_and_what_was_expected(hook, answer, expected):
    with pytest.raises(PluginError) as caught:
        call(hook, answer)
    assert str(caught.value).startswith(f"'acme' answered {hook} with ")
    assert str(caught.value).endswith(f"; expected {expected}")


def test_only_the_named_plugin_is_asked():
    stages = Stages({name: answering("observe", Maxima()) for name in ("one", "other")} | {"silent": Rounding()})
    assert stages.observe("one", SITE, SCHEMES["W8A8"]) is not stages.observe("other", SITE, SCHEMES["W8A8"])
    assert stages.observe("silent", SITE, SCHEMES["W8A8"]) is None


def test_a_hook_gets_the_arguments_it_names():
    class Curious(Algorithm):
        @hookimpl
        def observe(self, scheme, site):
            return Seen(site, scheme)

    class Seen(Accumulator):
        def __init__(self, *arguments):
            self.arguments = arguments

        def update(self, x): ...

        def result(self): ...

    found = Stages({"curious": Curious()}).observe("curious", SITE, SCHEMES["W8A8"])
    assert found.arguments == (SITE, SCHEMES["W8A8"])


def test_wrappers_see_every_call_of_every_plugin():
    class Log:
        def __init__(self):
            self.calls = []

        @hookimpl(wrapper=True)
        def quantize(self, layers):
            answer = yield
            self.calls.append((len(layers), sorted(answer)))
            return answer

    log = Log()
    for layer in LAYERS:
        layer.scheme = SCHEMES["W8A8"]
    stages = Stages({"one": Rounding(), "other": Rounding(), "plain": Plain()}, [log])
    stages.quantize("one", None, LAYERS, {})
    stages.quantize("other", None, LAYERS[:1], {})
    assert log.calls == [(2, ["a", "b"]), (1, ["a"])]


def test_a_wrapper_that_is_misspelt_is_an_error():
    with pytest.raises(PluginError, match="'Answering' implements 'quantise', which is not a hook"):
        Stages({}, [answering("quantise", None)])


def test_what_a_plugin_implements():
    assert implements(Rounding, "quantize")
    assert implements(Rounding(), "quantize")
    assert not implements(Rounding, "smooth")
    assert not implements(type("Unmarked", (), {"quantize": lambda self, layers: None}), "quantize")


def test_a_good_class_or_instance_passes():
    check_hooks(Rounding)
    check_hooks(Plain(), name="plain")
