"""The tokens of one model that every row of the accuracy table shares:

    prepare.py MODEL CALIBRATION.txt EVALUATION.txt FOLDER SAMPLES WINDOWS

Writes FOLDER/calibration.npy, what ours takes from the text, and FOLDER/evaluation.npy, its first windows.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from gs_core import calibration
from gs_core.api import open_source

SEQ_LEN = 256


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "calibration", "evaluation", "folder"):
        parser.add_argument(name, type=Path)
    for name in ("samples", "windows"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    model = open_source(given.model).model
    given.folder.mkdir(parents=True, exist_ok=True)
    np.save(given.folder / "calibration.npy", calibration.load(given.calibration, given.samples, SEQ_LEN, model))
    evaluation = model.tokenize(given.evaluation.read_text(encoding="utf-8"))[: given.windows * SEQ_LEN]
    np.save(given.folder / "evaluation.npy", evaluation.reshape(given.windows, SEQ_LEN))
    print(json.dumps({"samples": given.samples, "windows": given.windows, "seq_len": SEQ_LEN}))


if __name__ == "__main__":
    main()
