"""A row of a file or dataset is a text or a chat."""

from collections.abc import Mapping, Sequence
from typing import Any

from gs_core.errors import CalibrationError

Chat = Sequence[Mapping[str, Any]]
"""Messages with ``role`` and ``content``: the input of a chat template."""
TEXT_FIELDS = ("text", "prompt", "content")
FIELDS = ("text", "messages", "conversations", "prompt", "content")
"""Fields of a row. The first in this order that is not null is used. A prompt can be the beginning of a chat, so chats
come first."""
ROLES = {"human": "user", "gpt": "assistant"}
"""Role names of ShareGPT → role names of chat templates."""
EXPECTED = "expected a text, or an object with 'text', 'messages', 'conversations', 'prompt' or 'content'"


def read_row(row: Any, where: str) -> str | Chat:
    """The text or chat of a row. Raises ``CalibrationError`` whose message begins with ``where``."""
    if isinstance(row, str):
        return row
    if _is_list(row) and row:
        return _chat(row, where)
    fields = [field for field in FIELDS if field in row] if isinstance(row, Mapping) else []
    if not fields:
        raise CalibrationError(f"{where}: {EXPECTED}")
    field = next((field for field in fields if row[field] is not None), fields[0])
    value = row[field]
    if isinstance(value, str):
        return value
    if _is_list(value):
        return _chat(value, f"{where}: '{field}'")
    kind = "null" if value is None else f"a {type(value).__name__}"
    raise CalibrationError(f"{where}: '{field}' is {kind}; it must be a text or a list of messages")


def _chat(messages: Sequence[Any], where: str) -> Chat:
    if not messages:
        raise CalibrationError(f"{where} has no messages; remove the row")
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(messages, 1)]


def _message(message: Any, where: str) -> dict[str, Any]:
    found = {k: v for k, v in message.items() if v is not None} if isinstance(message, Mapping) else {}
    if "from" in found:
        sender = found["from"]
        found = {"role": ROLES.get(sender, sender) if isinstance(sender, str) else None, "content": found.get("value")}
    content = found.get("content")
    calls_tools = content is None and "tool_calls" in found
    if not isinstance(found.get("role"), str) or not (calls_tools or isinstance(content, str) or _is_list(content)):
        raise CalibrationError(f"{where}: expected 'role' and 'content', or 'from' and 'value', both texts")
    return {**found, "content": content}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
