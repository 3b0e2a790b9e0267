"""Fuzz the readers: ``python tests/fuzz/run.py --seconds 60 [--seed N] [--target NAME]``.

Every mutant must be read, or refused with a GoldenStickError or SchemaError, within ``MAX_CPU_SECONDS`` and
``MAX_MEMORY_BYTES``. Otherwise it is a failure: the mutant is written to ``out/fuzz/NAME/``, and the exit code is 1.
Put the mutant of a fixed failure into ``corpus/NAME/NUMBER-FILE`` (``+`` for ``/``). The corpus is read first.
"""

import argparse
import hashlib
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from types import FrameType

sys.path.insert(0, str(Path(__file__).parent))

from mutations import mutate
from targets import TARGETS, Target

from gs_core import GoldenStickError
from gs_schemas import SchemaError

MAX_CPU_SECONDS = 30
"""CPU seconds for one mutant."""
MAX_WALL_SECONDS = 300
MAX_MEMORY_BYTES = 16 * 2**30
MIN_CASES = 8
"""Least number of mutants of each target, also if time is over."""


class Hang(BaseException):
    pass


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang


def failure(target: Target, file: str, content: bytes) -> str:
    """The traceback of a reader that fails on this content of a file; empty if it reads or refuses it."""
    path = target.folder / file
    path.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
    signal.alarm(MAX_WALL_SECONDS)
    try:
        target.read()
    except (GoldenStickError, SchemaError):
        pass
    except (Exception, Hang):
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        path.write_bytes(target.seeds[file])
    return ""


def fuzz(target: Target, seconds: float, seed: int, out: Path) -> int:
    """The number of distinct failures."""
    random, found, cases = Random(f"{target.name} {seed}"), set[str](), 0
    ends = time.monotonic() + seconds
    waiting = target.corpus()
    while waiting or cases < MIN_CASES or time.monotonic() < ends:
        if waiting:
            file, content = waiting.pop()
        else:
            file = random.choice(sorted(target.seeds))
            content = mutate(target.seeds[file], random)
        cases += 1
        trace = failure(target, file, content)
        place = "\n".join(line for line in trace.splitlines() if line.startswith("  File"))
        if trace and place not in found:
            found.add(place)
            name = f"{hashlib.sha256(content).hexdigest()[:8]}-{file.replace('/', '+')}"
            (out / target.name).mkdir(parents=True, exist_ok=True)
            (out / target.name / name).write_bytes(content)
            print(f"{out / target.name / name}\n{trace}", flush=True)
    print(f"{target.name}: {cases} cases, {len(found)} failures", flush=True)
    return len(found)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=[target.name for target in TARGETS])
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _hang)
    signal.signal(signal.SIGPROF, _hang)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    chosen = [target for target in TARGETS if asked.target in (None, target.name)]
    with tempfile.TemporaryDirectory() as folder:
        counts = [
            fuzz(kind(Path(folder) / kind.name), asked.seconds / len(chosen), asked.seed, asked.out) for kind in chosen
        ]
    return 1 if any(counts) else 0


if __name__ == "__main__":
    sys.exit(main())
