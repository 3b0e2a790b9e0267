"""One quantization by ModelOpt, measured: `quantize_modelopt.py MODEL RECIPE OUT TOKENS.npy`.

Runs in the environment of tests/lanes/modelopt.txt, with the same tokens, and its own defaults.
"""

from resources import asked, cpu_seconds, report

RECIPES = ("w8a8-smoothquant",)


def main() -> None:
    given = asked(RECIPES)

    import modelopt.torch.quantization as mtq
    import numpy
    import torch
    import transformers
    from modelopt import __version__
    from modelopt.torch.export import export_hf_checkpoint

    tokens = torch.from_numpy(numpy.load(given.tokens).astype("int64"))
    before = cpu_seconds()
    model = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype="auto").eval()

    def calibrate(model: torch.nn.Module) -> None:
        with torch.no_grad():
            for row in tokens:
                model(row[None])

    mtq.quantize(model, mtq.INT8_SMOOTHQUANT_CFG, calibrate)
    export_hf_checkpoint(model, export_dir=given.out)
    report(quantize=cpu_seconds() - before, version=__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
