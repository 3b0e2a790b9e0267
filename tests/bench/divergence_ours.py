"""Divergence and perplexity of a folder as this project computes it: `divergence_ours.py FOLDER FLOAT WINDOWS.npy`.

For formats that no engine opens on a CPU.
"""

import json
import sys

import numpy

from gs_core import compare


def main() -> None:
    folder, original, file = sys.argv[1:]
    windows = numpy.load(file)
    found = compare(folder, original, windows.reshape(-1), seq_len=windows.shape[1], windows=len(windows))
    print(json.dumps({"divergence": found.divergence, "perplexity": found.model.perplexity}))


if __name__ == "__main__":
    main()
