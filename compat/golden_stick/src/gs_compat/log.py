"""``logger``: the standard one, whose methods take ``flush`` as ``print`` does."""

import logging
from collections.abc import MutableMapping
from typing import Any


class _Logger(logging.LoggerAdapter):
    """Every record is written out at once anyway, so ``flush`` says nothing new."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs.pop("flush", None)
        return msg, kwargs

    def set_level(self, level: int | str) -> None:
        """``"INFO"`` or ``logging.INFO``."""
        self.logger.setLevel(level)


logger = _Logger(logging.getLogger("gs_compat"), {})
