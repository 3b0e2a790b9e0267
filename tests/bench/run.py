"""Everything that is measured, not tested: `run.py [--only accuracy|memory|speed] [--full] [--out docs/benchmarks.md]`.

Each row is a process of its own on one thread. CPU seconds, because a busy machine stretches all others; ratios,
because machines differ. Exits with 1 when memory is over its limit.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import accuracy
import memory
import speed
from measuring import machine

TITLE = """# Benchmarks

Written by `make bench`. CPU seconds, because a busy machine stretches all others; ratios, because machines differ.
"""
SECTIONS = ("accuracy", "memory", "speed")


def measure(name: str, full: bool) -> tuple[str, bool]:
    """A section of the page, and whether all is as it must be."""
    good = True
    with tempfile.TemporaryDirectory(prefix="golden-stick-bench-") as work:
        match name:
            case "accuracy":
                found = accuracy.measure(Path(work))
            case "memory":
                found, good = memory.measure(Path(work))
            case _:
                found = speed.measure(Path(work), full)
    return f"## {name.capitalize()}\n\n{machine()}\n\n{found}", good


def replace(page: str, section: str) -> str:
    """The page with this section in place of the one of the same title."""
    parts = dict.fromkeys(f"## {name.capitalize()}" for name in SECTIONS)
    for part in [*page.split("\n## ")[1:], section.removeprefix("## ")]:
        parts[f"## {part.splitlines()[0]}"] = f"## {part.strip()}\n"
    return "\n".join([TITLE, *(part for part in parts.values() if part)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be given more than once")
    parser.add_argument("--full", action="store_true", help="the peer's speed, too: some minutes more")
    parser.add_argument("--out", type=Path, help="put what was measured into this page")
    given = parser.parse_args()

    good = True
    for name in given.only or SECTIONS:
        section, fine = measure(name, given.full)
        good = good and fine
        print(section, flush=True)
        if given.out:
            page = given.out.read_text(encoding="utf-8") if given.out.is_file() else ""
            given.out.write_text(replace(page, section), encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
