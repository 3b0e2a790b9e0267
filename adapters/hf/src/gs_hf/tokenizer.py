"""The tokenizer of a model, loaded from local files when it is first needed."""

from pathlib import Path

from gs_core import CalibrationError
from gs_core.calibration import WrappedTokenizer
from gs_hf.trust import refusal


def load_tokenizer(source: str | Path | None, model: str, trust_remote_code: bool = False) -> WrappedTokenizer:
    """The tokenizer of a folder, or of a hub id in the local cache.

    source: a folder, or the ``name_or_path`` of a live model, which may be empty. model: the name of the model, for
    messages. Raises ``CalibrationError`` if no tokenizer is found.
    """
    advice = "give a tokenizer (tokenizer= in Python), or token ids (a .npy file or an array) instead of text"
    if not source:
        raise CalibrationError(f"{model}: no tokenizer, because name_or_path of the model is empty; {advice}")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers' tokenizer loading has no family of errors
        why = None if trust_remote_code else refusal(Path(source), "tokenizer_config.json")
        why = why or f"{source}: no tokenizer could be loaded from local files ({type(error).__name__})"
        raise CalibrationError(f"{why}; {advice}") from None
    return WrappedTokenizer(loaded)
