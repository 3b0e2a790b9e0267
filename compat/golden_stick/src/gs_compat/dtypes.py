"""Dtypes by name: MindSpore's own objects and strings say the same, and nothing imports MindSpore to find out."""

from typing import Any

_NAMES = {"int8": "int8", "int4": "qint4x2", "qint4x2": "qint4x2", "none": None}
_YAML = {"int8": "Int8", "qint4x2": "Int4", None: "None"}


def dtype_name(dtype: Any) -> str | None:
    """``"int8"``, ``"qint4x2"`` or ``None``, for ``mindspore.dtype.int8`` (which prints ``Int8``), ``"int8"``,
    ``mindspore.dtype.qint4x2`` (``Int4``), ``"int4"``, ``None``. Anything else comes back as text, for an error to
    cite."""
    text = "none" if dtype is None else str(dtype)
    return _NAMES.get(text.lower(), text)


def yaml_dtype(name: str | None) -> str:
    """The word for a dtype in a YAML file."""
    return _YAML[name]
