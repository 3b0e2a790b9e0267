"""Mutations of files: of bytes, and of values in JSON. The same random seed gives the same mutants."""

import json
from random import Random
from typing import Any

NUMBERS = [0, -1, 1, 255, 2**31, 2**63, 10**9, 10**30, -(10**9), 0.5, 1e308]
INTERESTING = [*NUMBERS, None, True, "", "x", "\ud800", [], {}, [[]]]
TOKENS = [
    b"\x00",
    b"\xff\xfe",
    b"[" * 2000,
    b"{" * 2000,
    b'"',
    b"&a *a",
    b"9" * 5000,
    b"NaN",
    b"../",
    b"\n",
    b"!!int x",
]


def mutate(content: bytes, random: Random) -> bytes:
    """One to four mutations of a file."""
    for _ in range(random.randint(1, 4)):
        content = (_structure if random.random() < 0.6 else _bytes)(content, random)
    return content


def _bytes(content: bytes, random: Random) -> bytes:
    at = random.randint(0, len(content))
    end = min(len(content), at + random.choice([1, 1, 2, 8, 64, len(content)]))
    match random.randrange(5):
        case 0:
            return content[:at] + content[end:]
        case 1:
            return content[:at] + random.choice(TOKENS) + content[at:]
        case 2:
            return content[:at] + content[at:end] * 2 + content[end:]
        case 3 if at < len(content):
            return content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]
        case _:
            return content[:at]


def _structure(content: bytes, random: Random) -> bytes:
    """Change one value of a JSON document, or of the header of a safetensors file."""
    start = 8 if content[8:9] == b"{" else 0
    length = int.from_bytes(content[:8], "little") if start else len(content)
    try:
        document = json.loads(content[start : start + length])
    except (ValueError, RecursionError):
        return _bytes(content, random)
    text = json.dumps(_changed(document, random)).encode()
    return text if not start else len(text).to_bytes(8, "little") + text + content[start + length :]


def _changed(value: Any, random: Random) -> Any:
    if isinstance(value, dict | list) and value and random.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = random.choice(keys)
        copy: Any = value.copy()
        if random.random() < 0.1:
            del copy[key]
        else:
            copy[key] = _changed(value[key], random)
        return copy
    return random.choice(INTERESTING)
