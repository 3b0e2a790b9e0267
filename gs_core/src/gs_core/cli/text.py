"""Numbers and names as people read them."""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any


def size(nbytes: float) -> str:
    """``3.2 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1000:  # 1000, so that three digits are enough
            return f"{_three_digits(nbytes)} {unit}"
        nbytes /= 1024
    return f"{_three_digits(nbytes)} TiB"


def count(number: float) -> str:
    """``6.74 billion``."""
    for unit in ("", " thousand", " million"):
        if number < 1000:
            return f"{_three_digits(number)}{unit}"
        number /= 1000
    return f"{_three_digits(number)} billion"


def _three_digits(number: float) -> str:
    if number >= 100 or number == int(number):
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``2 min 14 s``, ``3 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def opens_in(engines: Sequence[Mapping[str, Any]]) -> list[str]:
    """``in transformers, vLLM (a restriction)``, then ``not in X: why`` for each other engine; empty without engines.

    engines: ``name``, ``opens`` and ``note`` of each ``gs_core.interfaces.Engine``.
    """
    opening = [f"{e['name']} ({e['note']})" if e["note"] else e["name"] for e in engines if e["opens"]]
    refusing = [f"not in {e['name']}: {e['note']}" for e in engines if not e["opens"]]
    return [f"in {', '.join(opening)}" if opening else "in no engine that was tried", *refusing] if engines else []


def alike(lines: Iterable[str], numbers: re.Pattern[str]) -> list[list[str]]:
    """Lines grouped by what is left of them without these numbers."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(numbers.sub("*", line), []).append(line)
    return list(groups.values())


IN_NAMES = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")
"""The numbers that are parts of dotted names, as a block's is."""


def collapse(names: Iterable[str]) -> list[str]:
    """Names that differ in numbers alone as one: ``layers.{0..27}.mlp.experts.{0..7}.up_proj``.

    Every name is in exactly one of the results, and nothing else is.
    """
    numbers: dict[str, set[tuple[int, ...]]] = {}
    for name in names:
        template = IN_NAMES.sub("*", name)
        numbers.setdefault(template, set()).add(tuple(int(n) for n in IN_NAMES.findall(name)))
    return [
        "".join(itertools.chain(*itertools.zip_longest(template.split("*"), map(_runs, box), fillvalue="")))
        for template, found in numbers.items()
        for box in _boxes(found)
    ]


Box = tuple[Collection[int], ...]


def _boxes(found: set[tuple[int, ...]]) -> list[Box]:
    """A set of tuples as products: those whose tails are the same share one."""
    if () in found:
        return [()]
    tails: dict[int, set[tuple[int, ...]]] = {}
    for first, *rest in sorted(found):
        tails.setdefault(first, set()).add(tuple(rest))
    heads: dict[frozenset[tuple[int, ...]], list[int]] = {}
    for first, rests in tails.items():
        heads.setdefault(frozenset(rests), []).append(first)
    return [(firsts, *box) for rests, firsts in heads.items() for box in _boxes(set(rests))]


def _runs(numbers: Collection[int]) -> str:
    """``7``, ``{0..27}``, ``{0,3..5}``."""
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return str(ordered[0])
    runs = []
    for _, group in itertools.groupby(enumerate(ordered), lambda pair: pair[1] - pair[0]):
        run = [n for _, n in group]
        runs.append(f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)))
    return "{" + ",".join(runs) + "}"
