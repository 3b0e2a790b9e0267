"""One quantization by AutoRound, measured: `quantize_autoround.py MODEL RECIPE OUT TOKENS.npy`.

Runs in the environment of tests/lanes/autoround.txt, with the same tokens, and its own defaults.
"""

from pathlib import Path

from resources import asked, cpu_seconds, report

RECIPES = {
    "w4a16-autoround-50": {"scheme": "W4A16", "iters": 50},
    "w4a16-autoround-200": {"scheme": "W4A16", "iters": 200},
    "w3a16-autoround-50": {"scheme": "W3A16", "iters": 50},
    "w3a16-autoround-200": {"scheme": "W3A16", "iters": 200},
    "w2a16-autoround-50": {"scheme": "W2A16G32", "iters": 50},
    "w2a16-autoround-200": {"scheme": "W2A16G32", "iters": 200},
    "w8a8-autoround-50": {"scheme": "INT8", "iters": 50},
}


def main() -> None:
    given = asked(RECIPES)

    import numpy
    import torch
    from auto_round import AutoRound
    from auto_round.version import __version__

    tokens = torch.from_numpy(numpy.load(given.tokens).astype("int64"))
    before = cpu_seconds()
    samples, seq_len = tokens.shape
    data = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in tokens]
    options = dict(RECIPES[given.recipe])
    if options["scheme"] in ("W4A16", "W3A16"):
        options["group_size"] = given.group_size
    rounding = AutoRound(given.model, dataset=data, nsamples=samples, seqlen=seq_len, device_map="cpu", **options)
    rounding.quantize_and_save(given.out, format="llm_compressor")
    for folder in Path(given.out).iterdir():  # one, which it names after the model and the scheme
        for file in folder.iterdir():
            file.rename(Path(given.out) / file.name)
    report(quantize=cpu_seconds() - before, version=__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
