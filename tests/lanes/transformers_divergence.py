"""How far a checkpoint's predictions are from the float model's, in transformers, and nothing of ours imported.

    python transformers_divergence.py FOLDER FLOAT WINDOWS.npy [--transforms]

WINDOWS is a file of token ids (windows, length). The last line of stdout is {"divergence": d, "perplexity": p}: the
divergence of Kullback and Leibler, in nats, the mean over every window's tokens but the last, and the checkpoint's
perplexity. The predictions of both models are computed a few windows at a time.
"""

import argparse
import json
import math
from typing import Any

from transformers_model import assert_nothing_of_ours, load

MAX_PREDICTIONS = 1024
"""Tokens whose predictions by both models are in memory at once."""


def figures(model: Any, original: Any, windows: str) -> dict[str, float]:
    """Divergence and perplexity of a causal language model of torch, on a file of token ids."""
    import numpy
    import torch
    import torch.nn.functional as F

    tokens = torch.from_numpy(numpy.load(windows).astype("int64"))
    divergence = loss = 0.0
    for batch in tokens.split(max(1, MAX_PREDICTIONS // tokens.shape[1])):
        with torch.no_grad():
            wanted, got = (m(batch).logits[:, :-1].float().log_softmax(-1).flatten(0, 1) for m in (original, model))
        divergence += F.kl_div(got, wanted, log_target=True, reduction="sum").item()
        loss += F.nll_loss(got, batch[:, 1:].flatten(), reduction="sum").item()
    count = tokens[:, 1:].numel()
    return {"divergence": divergence / count, "perplexity": math.exp(min(loss / count, 700))}


def main() -> None:
    parser = argparse.ArgumentParser(description="divergence of a checkpoint from the float model in transformers")
    for name in ("folder", "float", "windows"):
        parser.add_argument(name)
    parser.add_argument("--transforms", action="store_true", help="apply the checkpoint's transform_config, if any")
    given = parser.parse_args()

    original = load(given.float, "float32", dequantize=False)
    found = figures(
        load(given.folder, "float32", dequantize=False, transforms=given.transforms), original, given.windows
    )
    assert_nothing_of_ours()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
