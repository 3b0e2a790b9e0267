"""A checkpoint's perplexity in transformers with compressed-tensors, and nothing of ours imported.

    python transformers_perplexity.py FOLDER WINDOWS [--dtype float32] [--dequantize] [--transforms]

WINDOWS is a .json or .npy file of token ids (windows, length). The last line of stdout is
{"perplexity": p}: exp of the mean cross entropy, in float32, of every window's tokens but the first.
"""

import json
import math
from typing import Any

from transformers_model import arguments, assert_nothing_of_ours, load


def perplexity(model: Any, windows: str) -> float:
    """Of a causal language model of torch on that file."""
    import numpy
    import torch

    if windows.endswith(".npy"):
        tokens = torch.from_numpy(numpy.load(windows).astype("int64"))
    else:
        with open(windows) as file:
            tokens = torch.tensor(json.load(file))
    loss = 0.0
    for batch in tokens.split(8):
        with torch.no_grad():
            logits = model(batch).logits[:, :-1].float().flatten(0, 1)
        loss += torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum").item()
    return math.exp(loss / tokens[:, 1:].numel())


def main() -> None:
    given = arguments("perplexity of a checkpoint in transformers", "windows", dtype="float32")
    found = perplexity(load(given.folder, given.dtype, given.dequantize, given.transforms), given.windows)
    assert_nothing_of_ours()
    print(json.dumps({"perplexity": found}))


if __name__ == "__main__":
    main()
