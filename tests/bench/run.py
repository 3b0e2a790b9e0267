"""Everything that is measured, not tested: `make bench`, or parts of it:

    run.py [--only accuracy|memory|speed] [--rows "W4A4 dynamic"] [--tools "AMD Quark"]
           [--recipes "*-gptq"] [--models SmolLM2-135M] [--full] [--jobs 2] [--out docs/benchmarks.md]

Each line is a process of its own on one thread. CPU seconds, because a busy machine stretches all others; ratios,
because machines differ. With --out, the page is written after every line, and lines that are not measured stay as they
are there. Exits with 1 when memory is over its limit.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import accuracy
import memory
import speed
from measuring import lines_of, machine
from peers import TOOLS
from rows import ROWS
from tested_models import MODELS

TITLE = """# Benchmarks

Written by `make bench`. CPU seconds, because a busy machine stretches all others; ratios, because machines differ. A
run that measures some lines alone leaves the others as they were: these can be older than the date above their table,
and of another processor than it says.
"""
SECTIONS = ("accuracy", "memory", "speed")


def measure(name: str, work: Path, given: argparse.Namespace, known: str) -> Iterator[str]:
    """What stands under the section's title, once or growing."""
    match name:
        case "accuracy":
            rows, tools, models = given.rows or ROWS, given.tools or TOOLS, given.models or list(MODELS)
            yield from accuracy.measure(
                work, rows, tools, models, given.recipes, given.full, given.jobs, lines_of(known)
            )
        case "memory":
            yield memory.measure(work)
        case _:
            yield from speed.measure(work, given.tools or TOOLS, lines_of(known))


def sections(page: str) -> dict[str, str]:
    """By name, what stands under each title."""
    found = {part.splitlines()[0].lower(): part.partition("\n")[2] for part in page.split("\n## ")[1:]}
    return {name: found.get(name, "").strip() for name in SECTIONS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="may be given more than once, as the next three"
    )
    parser.add_argument("--rows", choices=ROWS, action="append", help="of the accuracy table")
    parser.add_argument("--tools", choices=TOOLS, action="append")
    parser.add_argument("--recipes", default="*", metavar="GLOB", help="of the accuracy table")
    parser.add_argument("--models", choices=MODELS, action="append", help="of the accuracy table")
    parser.add_argument("--full", action="store_true", help="the slowest recipes of the accuracy table, too")
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="2: two models of a line at once")
    parser.add_argument("--out", type=Path, help="put what was measured into this page")
    given = parser.parse_args()

    page = sections(given.out.read_text(encoding="utf-8") if given.out and given.out.is_file() else "")
    for name in given.only or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="golden-stick-bench-") as work:
            for found in measure(name, Path(work), given, page[name]):
                page[name] = f"{machine()}\n\n{found}".strip()
                if given.out:
                    parts = [f"## {title.capitalize()}\n\n{text}\n" for title, text in page.items() if text]
                    given.out.write_text("\n".join([TITLE, *parts]), encoding="utf-8")
        print(f"## {name.capitalize()}\n\n{page[name]}\n", flush=True)
    return 1 if memory.OVER in page["memory"] else 0


if __name__ == "__main__":
    sys.exit(main())
