"""What an adapter is, and what it opens: a model, block by block."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gs_core.arrays import Array, RawTensor
from gs_core.errors import CalibrationError
from gs_core.interfaces.layers import CacheInfo, Layer, LayerInfo, Site
from gs_core.interfaces.transforms import Fold, OnSite, Transform
from gs_core.linear_map import LinearMap
from gs_core.predictions import cross_entropy, log_probabilities, tiles
from gs_core.storage import Checkpoint, Tensor

Batch = tuple[np.ndarray, "Mapping[str, RawTensor] | None"]
"""Token ids, int64 ``(batch, seq_len)``, and what the block before returned for them (None for the first)."""
ALL = slice(None)


class Block(ABC):
    """A decoder block: loaded, calibrated, quantized, written and forgotten.

    ``layers`` and ``sites`` are by name, in the order of execution.
    """

    name: str
    index: int
    layers: dict[str, Layer]
    sites: dict[str, Site]
    online: Mapping[str, LinearMap] = {}
    """What activations go through when the block runs, by site: set by ``apply``, and by whoever opens a checkpoint
    whose weights are meant for it. Replaced, never written into."""
    exact: bool = True
    """Whether ``run`` has to multiply in float32; where not, it may in the dtype that the weights are stored in."""
    observing: bool = False
    """Where that need not be: whether it may also round what it multiplies, by less than the layers' schemes will."""

    @contextmanager
    def computing(self, exact: bool, observing: bool = False) -> Iterator[None]:
        """Set ``exact`` and ``observing`` for a while."""
        before = self.exact, self.observing
        self.exact, self.observing = exact, observing
        try:
            yield
        finally:
            self.exact, self.observing = before

    def verifying(self) -> AbstractContextManager[None]:
        """A context in which the block computes in float64, for verification on a few tokens.

        In the context ``apply`` changes float64 copies of parameters. The caller undoes every transform before the
        context ends. At the end the parameters are the previous ones. An adapter whose framework or device has no
        float64 does not override this method: ``run`` then returns float32, and ``gs_core.comparing`` allows for its
        rounding.
        """
        return nullcontext()

    @abstractmethod
    def run(
        self,
        tokens: np.ndarray,
        previous: Mapping[str, RawTensor] | None,
        on_site: OnSite | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Compute the block on one batch. ``on_site`` sees, and replaces, what the site's map (``online``) made.

        tokens: int64 ``(batch, seq_len)``. previous: what the block before returned for the same batch
        (``None`` for the first). weights: ``(out, in)`` float32 in place of layers' own, by layer name; when they
        are given, even none, automatic differentiation follows the run wherever ``Model.differentiates``.
        Returns named arrays that ``run`` of the next block understands; ``hidden`` is the residual stream,
        ``(batch, seq_len, hidden)``.
        """

    def backward(
        self,
        tokens: np.ndarray,
        previous: Mapping[str, RawTensor] | None,
        gradient: Mapping[str, RawTensor],
        on_gradient: Callable[[str, Array], None] = lambda layer, gradient: None,
    ) -> dict[str, Array]:
        """Gradients of something of which the gradient at what ``run`` returns is known, wherever
        ``Model.differentiates``: at what the block was given, as ``hidden``; nothing for the first block.

        gradient: float32, as ``hidden``, ``(batch, seq_len, hidden)``. on_gradient: called with the name of each layer
        that was used and the gradient at its output, float32 ``(tokens, out)``.
        """
        raise NotImplementedError

    def folds(self) -> Sequence[Fold]:
        """Where scales can be folded, found by watching the block run. Empty when it was opened not to run."""
        return ()

    def apply(self, transform: Transform) -> tuple[Transform, Callable[[], None]]:
        """Rewrite producer and consumers in place; returns the transform that was really applied (a producer's
        stored dtype may round it) and what takes it back. Raises ``ValueError`` when the producer cannot."""
        raise ValueError(f"{self.name}: this adapter folds no transforms")

    @abstractmethod
    def rest(self, quantized: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the block by checkpoint name, in the source's dtype, but the weights of the layers
        named in ``quantized``: norms, biases, and the weights of layers that stay in floating point."""


class Model(ABC):
    """An opened model: what it is made of, block by block, and what lies outside the blocks."""

    name: str
    layers: list[LayerInfo]
    warnings: Sequence[str] = ()
    """What a user should know about how it was opened."""
    differentiates: bool = False
    """Whether its blocks compute with torch tensors that autograd can follow, and it has ``loss_gradient``."""
    kept: dict[str, str]
    """Modules that could be mistaken for layers but stay in floating point: name, and why."""
    caches: Sequence[CacheInfo] = ()
    """What its attention modules cache, in the order of execution."""
    uncached: str = "its adapter does not tell what attention caches"
    """Why there are no caches, where there are none."""
    hidden: int = 0
    """How many features the residual stream has; 0 where the adapter cannot rotate it."""

    @property
    def rotation_divergence(self) -> float | None:
        """Divergence that working precision adds to the rotated model, on a few tokens.

        Kullback-Leibler divergence of its predictions from those of the float model computed in float64, in nats per
        token. ``None`` without a rotation, before the last block was opened, in a resumed run (which does not open
        the finished blocks), or if the adapter does not measure it.
        """
        return None

    @property
    @abstractmethod
    def blocks(self) -> Sequence[str]:
        """Names of the decoder blocks in order."""

    @abstractmethod
    def block(self, index: int, probe: Batch | None) -> Block:
        """Load one block. ``probe`` is a batch to try things on; None says that the block will never run, so
        each weight is read only when asked for."""

    @abstractmethod
    def rest(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor outside the blocks, by checkpoint name, to be streamed from file to file."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The content of config.json."""

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The other files of the source folder that an engine wants beside the weights."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the weights or the configuration do."""

    @abstractmethod
    def tokenize(self, text: str) -> np.ndarray:
        """Token ids, int64 ``(n,)``, without special tokens. Raises ``CalibrationError`` without a tokenizer."""

    def render_chat(self, chat: Sequence[Mapping[str, Any]]) -> str:
        """The text of a chat by the chat template of the model's tokenizer.

        chat: messages with ``role`` and ``content``. Raises ``CalibrationError`` without a template.
        """
        raise CalibrationError(f"{self.name} has no chat template; give texts instead of chats, or a tokenizer")

    @abstractmethod
    def vocabulary(self) -> int:
        """How many token ids there are."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all weights of the source."""

    def max_tokens(self) -> int | None:
        """The longest sequence the model accepts, or ``None`` when it does not say."""
        return None

    def settings(self, exact: bool) -> AbstractContextManager[None]:
        """Entered around quantizing with its blocks and their arrays: what its framework has to be set to meanwhile.
        ``exact``: all products in float32, those of searches too (``gs_core.products``)."""
        return nullcontext()

    def rotate(self, rotation: LinearMap) -> None:
        """Rotate the residual stream, once, while planning: what a block opened from now on takes and returns as
        ``hidden`` is ``rotation.apply`` of what it was. The weights of norms on the stream move into the layers they
        feed; embeddings, head and ``config`` follow when they are written. Reads no weights. Each block is verified
        when it is opened: it raises ``CheckpointError`` where its float function would change.

        Raises ``ValueError`` saying why the stream of this model cannot be rotated.
        """
        raise ValueError("this adapter rotates no residual stream")

    @abstractmethod
    def logits(
        self, tokens: np.ndarray, last: Mapping[str, RawTensor], windows: slice = ALL, positions: slice = ALL
    ) -> np.ndarray:
        """Logits of the next token, from the last block's output.

        Args:
            tokens: int64 ``(batch, seq_len)``.
            last: the output of the last block for these tokens.
            windows: the rows of ``tokens`` to return.
            positions: the positions of each row to return.

        Returns:
            float32 ``(windows, positions, vocabulary)``.
        """

    def losses(self, tokens: np.ndarray, last: Mapping[str, RawTensor]) -> np.ndarray:
        """Next-token cross entropy in nats, float64 ``(batch, seq_len - 1)``, from the last block's output."""
        found = np.empty((tokens.shape[0], tokens.shape[1] - 1))
        for windows, positions in tiles(found.shape[0], found.shape[1], self.vocabulary()):
            logits = self.logits(tokens, last, windows, positions)
            targets, losses = tokens[:, 1:][windows, positions].reshape(-1), np.empty(logits.shape[0] * logits.shape[1])
            for part, (predicted,) in log_probabilities(logits.reshape(-1, logits.shape[-1])):
                losses[part] = cross_entropy(predicted, targets[part])
            found[windows, positions] = losses.reshape(logits.shape[:2])
        return found

    def loss_gradient(self, tokens: np.ndarray, last: Mapping[str, RawTensor], seed: int) -> dict[str, Array]:
        """The gradient at ``hidden`` of the last block's output, of the sum of the losses of next tokens that are drawn
        from the model's own predictions: its second moment is their Fisher information. Same seed, same tokens."""
        raise NotImplementedError


class Adapter(ABC):
    """Speaks one framework. Importing the class must not import the framework."""

    handles: ClassVar[tuple[str, ...]] = ()
    """Dotted names of the live objects it takes, matched along their classes' MRO."""

    @abstractmethod
    def refuses(self, folder: Path) -> str | None:
        """Why this folder is not for this adapter, or ``None``. Reads no weights."""

    @abstractmethod
    def open(
        self, source: Any, device: str, checkpoint: Checkpoint | None = None, trust_remote_code: bool = False
    ) -> Model:
        """Open a folder (``Path``) or a live object.

        Args:
            source: the folder or object.
            device: where to compute, in the framework's own notation.
            checkpoint: replaces the tensors of the folder: for a quantized folder, the dequantized weights.
            trust_remote_code: if False, no code from the folder may run, and nothing may ask the user about it.

        Raises:
            CheckpointError: the folder is damaged, or the adapter cannot build the model.
        """
