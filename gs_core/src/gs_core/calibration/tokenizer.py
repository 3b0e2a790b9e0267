"""One interface for tokenizers of any library."""

from typing import Any, Protocol

import numpy as np

from gs_core.calibration.rows import Chat
from gs_core.errors import CalibrationError, reason

NO_TEMPLATE = "the tokenizer has no chat template; give texts instead of chats, or a tokenizer with a chat template"


class Tokenizer(Protocol):
    """The methods of ``Model`` that turn calibration data into token ids."""

    def tokenize(self, text: str) -> np.ndarray:
        """Token ids, int64 ``(n,)``, without special tokens."""

    def render_chat(self, chat: Chat) -> str:
        """The chat as text. Raises ``CalibrationError`` without a chat template."""


class WrappedTokenizer:
    """A tokenizer of transformers or tokenizers, or a callable ``str → ids``."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def tokenize(self, text: str) -> np.ndarray:
        try:
            if hasattr(self.tokenizer, "encode"):
                found = self.tokenizer.encode(text, add_special_tokens=False)
                ids = np.asarray(getattr(found, "ids", found))
            else:
                ids = np.asarray(self.tokenizer(text))
        except Exception as error:  # the caller's own code may raise anything
            raise CalibrationError(f"the tokenizer failed: {reason(error)}") from error
        if ids.size == 0:
            return np.empty(0, np.int64)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise CalibrationError(
                f"the tokenizer returned {ids.dtype} of shape {ids.shape}; it must return a list of token ids"
            )
        return ids.astype(np.int64)

    def render_chat(self, chat: Chat) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise CalibrationError(NO_TEMPLATE)
        try:
            return str(self.tokenizer.apply_chat_template(list(chat), tokenize=False))
        except Exception as error:  # a template is a program and may raise anything
            raise CalibrationError(
                f"the chat template refuses this chat ({reason(error)}); change or remove the chat"
            ) from error


def adapt(tokenizer: Any) -> Tokenizer:
    """Returns an opened model unchanged, and wraps other tokenizers. Raises ``CalibrationError`` for other objects."""
    if hasattr(tokenizer, "render_chat"):
        return tokenizer
    if not callable(tokenizer) and not hasattr(tokenizer, "encode"):
        kind = type(tokenizer).__name__
        raise CalibrationError(
            f"a {kind} is not a tokenizer; give a tokenizer of transformers, or a function from text to ids"
        )
    return WrappedTokenizer(tokenizer)
