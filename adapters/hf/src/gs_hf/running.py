"""Running one block as the whole model would run it, with none of the other blocks in memory.

The model's own forward is called from its start, so masks, positions and whatever a model does between blocks are
exactly its own. Blocks before the wanted one answer with what the one before it is known to have returned; the
wanted one computes; then the forward is abandoned.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch

from gs_core import CalibrationError
from gs_core.arrays import RawTensor
from gs_core.errors import reason

Outputs = dict[str, torch.Tensor]


class Finished(BaseException):
    """Thrown out of the model's forward when the wanted block has returned."""

    def __init__(self, output: Any):
        self.output = output


class Runner:
    """Calls ``module`` with some blocks standing still."""

    def __init__(self, module: torch.nn.Module, blocks: list[str], device: str):
        self.module, self.device = module, device
        self.blocks = [module.get_submodule(name) for name in blocks]
        self.whole = blocks == [""]

    def block(
        self, index: int, tokens: np.ndarray, previous: Outputs | None, cache: Any = None, gradient: bool = False
    ) -> Outputs:
        """What block ``index`` returns; see ``gs_core.Block.run``. ``cache``: a transformers cache to run with."""
        with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
            if self.whole:
                return {"hidden": _first_tensor(self._forward(tokens, cache))}
            answer = unflatten(previous) if previous is not None else None
            return flatten(self.returns_at(index, tokens, [answer] * index, cache))

    def returns_at(self, index: int, tokens: np.ndarray, answers: Sequence[Any], cache: Any = None) -> Any:
        """What block ``index`` returns when the blocks before it return ``answers``."""

        def compute(number: int, call: partial) -> Any:
            if number < index:
                return answers[number]
            raise Finished(call())

        return self._call(tokens, compute, cache)

    @torch.no_grad()
    def returns(self, tokens: np.ndarray) -> list[Any]:
        """What every block returns in one whole run."""
        answers: list[Any] = [None] * len(self.blocks)

        def keep(number: int, call: partial) -> Any:
            answers[number] = call()
            return answers[number]

        self._call(tokens, keep)
        return answers

    @torch.no_grad()
    def arrives(self, index: int, tokens: np.ndarray, answers: Sequence[Any]) -> list[torch.Tensor]:
        """The tensors that block ``index`` is called with when the blocks before it return ``answers``."""

        def stop(number: int, call: partial) -> Any:
            if number < index:
                return answers[number]
            raise Finished([call.args, call.keywords])

        return [t for t in _tensors(self._call(tokens, stop)) if not isinstance(t, torch.nn.Parameter)]

    def head(self, tokens: np.ndarray, last: Outputs, positions: slice = slice(None)) -> torch.Tensor:
        """Logits, ``(batch, positions, vocabulary)``, from the last block's output; with gradients if that has them.

        If ``forward`` has the argument ``logits_to_keep``, only these positions are computed.
        """
        if self.whole:
            return last["hidden"][:, positions]
        options = {}
        if positions != slice(None) and "logits_to_keep" in signature(type(self.module).forward).parameters:
            options["logits_to_keep"] = torch.arange(tokens.shape[1], device=self.device)[positions]
        with torch.set_grad_enabled(last["hidden"].requires_grad):
            found = self._end(tokens, [unflatten(last)] * len(self.blocks), options)
        return found if options else found[:, positions]

    @torch.no_grad()
    def end(self, tokens: np.ndarray, answers: Sequence[Any]) -> torch.Tensor:
        """Logits, when the blocks return ``answers``."""
        return self._end(tokens, answers)

    def _end(
        self, tokens: np.ndarray, answers: Sequence[Any], options: Mapping[str, Any] | None = None
    ) -> torch.Tensor:
        return _first_tensor(self._call(tokens, lambda number, call: answers[number], options=options))

    @torch.no_grad()
    def enters(self, module: torch.nn.Module, tokens: np.ndarray, last: Outputs) -> torch.Tensor:
        """What a module after the blocks is called with, from the last block's output. It is not called."""

        def stop(m: torch.nn.Module, given: tuple) -> None:
            raise Finished(given[0])

        # Before the hooks that would load the module's weights.
        handle = module.register_forward_pre_hook(stop, prepend=True)
        try:
            return self._call(tokens, lambda number, call: unflatten(last))
        finally:
            handle.remove()

    def _call(
        self,
        tokens: np.ndarray,
        compute: Callable[[int, partial], Any],
        cache: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        for number, block in enumerate(self.blocks):
            block.forward = _standing(block, number, compute)
        try:
            return self._forward(tokens, cache, options)
        except Finished as finished:
            finished.__traceback__ = None  # its frames hold every tensor of the forward
            return finished.output
        finally:
            for block in self.blocks:
                del block.forward

    def _forward(self, tokens: np.ndarray, cache: Any = None, options: Mapping[str, Any] | None = None) -> Any:
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device)
        options = ({"use_cache": False} if hasattr(self.module, "config") else {}) | dict(options or {})
        try:
            return self.module(ids, **options | ({"past_key_values": cache} if cache is not None else {}))
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError) as error:
            raise CalibrationError(f"the model cannot be run block by block: {reason(error)}") from error


def _standing(block: torch.nn.Module, number: int, compute: Callable[[int, partial], Any]) -> Callable:
    original = type(block).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return compute(number, partial(original, block, *args, **kwargs))

    return forward


def _first_tensor(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def flatten(output: Any) -> Outputs:
    """A block's answer as named tensors: ``hidden``, and for a tuple its length and its other tensors."""
    if isinstance(output, torch.Tensor):
        return {"hidden": output}
    arrays = {"hidden": output[0], "length": torch.tensor([len(output)])}
    arrays |= {str(i): item for i, item in enumerate(output) if i and isinstance(item, torch.Tensor)}
    return arrays


def unflatten(arrays: Outputs) -> Any:
    """The inverse of ``flatten``; what was no tensor comes back as None."""
    if "length" not in arrays:
        return arrays["hidden"]
    return (arrays["hidden"], *(arrays.get(str(i)) for i in range(1, int(arrays["length"]))))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


def to_torch(raw: RawTensor, device: str = "cpu") -> torch.Tensor:
    """A tensor over the bytes of ``raw`` (shared on the CPU)."""
    dtype = getattr(torch, raw.dtype)
    if raw.nbytes == 0:
        return torch.empty(raw.shape, dtype=dtype, device=device)
    return torch.from_numpy(raw.data).view(dtype).reshape(raw.shape).to(device)


def fast_dtype(stored: str, device: str) -> torch.dtype:
    """The dtype ``stored`` where matrix products of it are faster than float32's, else float32."""
    if stored in ("bfloat16", "float16") and device != "cpu":
        return getattr(torch, stored)
    # float16 is emulated on processors, and bfloat16 on those without instructions for it.
    native = stored == "bfloat16" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def take_up(previous: Mapping[str, RawTensor] | None, device: str) -> Outputs | None:
    """What was stored of the block before, as tensors."""
    return None if previous is None else {name: to_torch(raw, device) for name, raw in previous.items()}
