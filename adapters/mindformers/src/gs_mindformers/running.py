"""Running one block as the whole network would run it.

The network's own construct is called from its start, so masks, positions and whatever it does between blocks are
exactly its own. Blocks before the wanted one answer with what the one before it is known to have returned; the wanted
one computes; then the construct is abandoned.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np

from gs_core import CalibrationError
from gs_core.arrays import RawTensor, to_raw
from gs_core.errors import reason
from gs_mindformers.standins import Swap, eager, inference, swapped
from gs_mindformers.tensors import from_file, logits, to_numpy
from gs_mindformers.watch import calling

Outputs = dict[str, np.ndarray]
ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError)


class Finished(BaseException):
    """Thrown out of the network's construct when the wanted block has returned."""

    def __init__(self, output: Any):
        self.output = output


class Runner:
    """Calls ``network`` with some blocks standing still. ``blocks``: their cells; empty for a whole network.
    ``arguments``: what it is called with beside the token ids."""

    def __init__(
        self,
        network: ms.nn.Cell,
        blocks: Sequence[ms.nn.Cell],
        arguments: Callable[[ms.nn.Cell, np.ndarray], dict[str, ms.Tensor]] = lambda network, tokens: {},
    ):
        self.network, self.blocks, self._arguments = network, blocks, arguments
        self.inference = inference(network)

    def block(self, index: int, tokens: np.ndarray, previous: Any, swaps: Iterable[Swap] = ()) -> Outputs:
        """What block ``index`` returns when the one before it returned ``previous``."""
        if not self.blocks:
            return {"hidden": to_numpy(logits(self._forward(tokens, swaps))).reshape(*tokens.shape, -1)}
        return flatten(self.returns_at(index, tokens, [previous] * index, swaps))

    def returns_at(self, index: int, tokens: np.ndarray, answers: Sequence[Any], swaps: Iterable[Swap] = ()) -> Any:
        """What block ``index`` returns when the blocks before it return ``answers``."""

        def compute(number: int, call: Callable[[], Any]) -> Any:
            if number < index:
                return answers[number]
            raise Finished(call())

        return self._call(tokens, compute, swaps)

    def returns(self, tokens: np.ndarray, swaps: Iterable[Swap] = ()) -> list[Any]:
        """What every block returns in one whole run."""
        answers: list[Any] = [None] * len(self.blocks)

        def keep(number: int, call: Callable[[], Any]) -> Any:
            answers[number] = call()
            return answers[number]

        self._call(tokens, keep, swaps)
        return answers

    def arrives(
        self, index: int, tokens: np.ndarray, answers: Sequence[Any], swaps: Iterable[Swap] = ()
    ) -> list[np.ndarray]:
        """The tensors that block ``index`` is called with when the blocks before it return ``answers``."""

        def stop(number: int, call: partial) -> Any:
            if number < index:
                return answers[number]
            raise Finished([call.args, call.keywords])

        return [to_numpy(x) for x in tensors(self._call(tokens, stop, swaps))]

    def end(self, tokens: np.ndarray, answers: Sequence[Any], swaps: Iterable[Swap] = ()) -> np.ndarray:
        """Logits, ``(batch, seq_len, vocabulary)``, when the blocks return ``answers``."""
        output = to_numpy(logits(self._call(tokens, lambda number, call: answers[number], swaps)))
        return output.reshape(*tokens.shape, -1)

    def whole(self, tokens: np.ndarray, swaps: Iterable[Swap] = ()) -> None:
        """The whole network, for those who listen."""
        self._forward(tokens, swaps)

    def _call(self, tokens: np.ndarray, compute: Callable[[int, Any], Any], swaps: Iterable[Swap]) -> Any:
        standing = [calling(block, partial(_standing, compute, number)) for number, block in enumerate(self.blocks)]
        try:
            return self._forward(tokens, [*swaps, *standing])
        except Finished as finished:
            finished.__traceback__ = None  # its frames hold every tensor of the run
            return finished.output

    def _forward(self, tokens: np.ndarray, swaps: Iterable[Swap]) -> Any:
        ids = ms.Tensor(np.ascontiguousarray(tokens), ms.int32)
        try:
            with eager(), swapped([*self.inference, *swaps]):
                return self.network(ids, **self._arguments(self.network, tokens))
        except ERRORS as error:
            raise CalibrationError(
                f"the network does not run on token ids {tuple(tokens.shape)}: {reason(error)}"
            ) from error


def _standing(compute: Callable[[int, Any], Any], number: int, construct: Callable, *args: Any, **keywords: Any) -> Any:
    return compute(number, partial(construct, *args, **keywords))


def flatten(output: Any) -> Outputs:
    """A block's answer as named arrays: ``hidden``, and for a tuple its length and its other tensors."""
    if isinstance(output, ms.Tensor):
        return {"hidden": to_numpy(output)}
    arrays = {"hidden": to_numpy(output[0]), "length": np.array([len(output)])}
    return arrays | {str(i): to_numpy(item) for i, item in enumerate(output) if i and isinstance(item, ms.Tensor)}


def take_up(previous: Mapping[str, RawTensor] | None) -> Any:
    """What was stored of the block before, as it returned it; what was no tensor comes back as None."""
    if previous is None:
        return None
    arrays = {name: from_file(raw) for name, raw in previous.items()}
    if "length" not in arrays:
        return arrays["hidden"]
    length = int(arrays["length"].asnumpy()[0])
    return (arrays["hidden"], *(arrays.get(str(i)) for i in range(1, length)))


def put_down(outputs: Outputs) -> dict[str, RawTensor]:
    """The inverse of ``take_up``."""
    return {name: to_raw(array) for name, array in outputs.items()}


def tensors(value: Any) -> list[ms.Tensor]:
    """Every tensor in nested tuples, lists and dictionaries but for parameters."""
    if isinstance(value, ms.Tensor):
        return [] if isinstance(value, ms.Parameter) else [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []
