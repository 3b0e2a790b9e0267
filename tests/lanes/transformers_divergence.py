"""How far a checkpoint's predictions are from the float model's, in transformers, and nothing of ours imported.

    python transformers_divergence.py FOLDER FLOAT WINDOWS.npy

WINDOWS is a file of token ids (windows, length). The last line of stdout is {"divergence": d}: of Kullback and Leibler,
in nats, the mean over every window's tokens but the last.
"""

import argparse
import json

from transformers_model import assert_nothing_of_ours, load


def main() -> None:
    parser = argparse.ArgumentParser(description="divergence of a checkpoint from the float model in transformers")
    for name in ("folder", "float", "windows"):
        parser.add_argument(name)
    given = parser.parse_args()

    import numpy
    import torch

    models = [load(folder, "float32", dequantize=False) for folder in (given.float, given.folder)]
    tokens = torch.from_numpy(numpy.load(given.windows).astype("int64"))
    total = 0.0
    for batch in tokens.split(8):
        with torch.no_grad():
            wanted, got = (model(batch).logits[:, :-1].float().log_softmax(-1).flatten(0, 1) for model in models)
        total += torch.nn.functional.kl_div(got, wanted, log_target=True, reduction="sum").item()
    assert_nothing_of_ours()
    print(json.dumps({"divergence": total / tokens[:, 1:].numel()}))


if __name__ == "__main__":
    main()
