"""A folder's perplexity as this project computes it: `perplexity_ours.py FOLDER WINDOWS.npy`.

For formats that no engine opens on a CPU.
"""

import json
import sys

import numpy

from gs_core import evaluate


def main() -> None:
    windows = numpy.load(sys.argv[2])
    found = evaluate(sys.argv[1], windows.reshape(-1), seq_len=windows.shape[1], windows=len(windows))
    print(json.dumps({"perplexity": found.perplexity}))


if __name__ == "__main__":
    main()
