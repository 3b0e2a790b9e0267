"""Quantize a folder while being killed again and again, until it is done; and once undisturbed.

    python kill_and_resume.py MODEL RECIPE TOKENS.npy FOLDER KILLS SEED

Writes FOLDER/undisturbed, and FOLDER/0, FOLDER/1, … until KILLS processes have been killed on the way to them. A
process is killed at a random moment of the time that an undisturbed run takes, from its first instruction on; the
next one takes up what it finds. The last line of stdout is {"killed": [moments in seconds ...], "seconds": duration of
an undisturbed run, "folders": n}.

Every process is forked from one that has imported everything, so that what is killed is the work and not the import.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has no threads but its own

from gs_core import plan, quantize


def main() -> None:
    model, recipe, tokens, folder, kills, seed = sys.argv[1:]
    plan(model, recipe)  # imports the adapter, the plugins and the model's own code

    def run(out: Path, moment: float = float("inf")) -> bool:
        """Whether a process finished the folder; False when it was killed before it could."""
        child = os.fork()
        if child == 0:
            try:
                quantize(model, recipe, out, calibration=tokens, samples=8, seq_len=64)
                os._exit(0)
            except BaseException:  # a forked process must not return into the code of its parent
                traceback.print_exc()
                os._exit(1)
        deadline = time.monotonic() + moment
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.001)
        status = os.waitstatus_to_exitcode(ended[1])
        if status not in (0, -signal.SIGKILL):
            sys.exit(f"the run into {out} failed")
        return status == 0

    started = time.monotonic()
    run(Path(folder, "undisturbed"))
    seconds = time.monotonic() - started

    moments, killed, done = random.Random(int(seed)), [], 0
    while len(killed) < int(kills):
        out, finished = Path(folder, str(done)), False
        while not finished:
            moment = moments.uniform(0, seconds) if len(killed) < int(kills) else float("inf")
            finished = run(out, moment)
            if not finished:
                killed.append(round(moment, 3))
        done += 1
    print(json.dumps({"killed": killed, "seconds": round(seconds, 3), "folders": done}))


if __name__ == "__main__":
    main()
