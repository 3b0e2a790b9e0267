"""Calibration tokens from texts, chats, datasets or token arrays. The same input gives the same tokens."""

from gs_core.calibration.rows import Chat
from gs_core.calibration.sources import locate
from gs_core.calibration.tokenizer import Tokenizer, WrappedTokenizer
from gs_core.calibration.tokens import batches, check, load, stream, windows

__all__ = ["Chat", "Tokenizer", "WrappedTokenizer", "batches", "check", "load", "locate", "stream", "windows"]
