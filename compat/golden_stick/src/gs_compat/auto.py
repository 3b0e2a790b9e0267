"""Whole models by path: ``AutoQuantForCausalLM.from_pretrained(p).calibrate(…).save_quantized(folder)``."""

import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from gs_compat import calibration
from gs_compat.config import PTQConfig
from gs_compat.inner import InnerPTQConfig
from gs_compat.policies import checked
from gs_compat.translate import FOLDER_FORMAT, translate
from gs_compat.words import BackendTarget
from gs_core import PlanError, plan, quantize
from gs_core.api import open_source


class BaseQuantForCausalLM:
    """A model that can be quantized into a folder for engines. ``source``: a checkpoint folder, or a live network.

    ``network`` is the live one, or None.
    """

    def __init__(self, source: Any):
        self.source = source
        self.network = None if isinstance(source, Path) else source
        self._made: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def from_pretrained(cls, pretrained: str | Path) -> "BaseQuantForCausalLM":
        """A checkpoint folder (Hugging Face's or MindFormers'), or a MindFormers YAML file.

        Raises ``ValueError`` for a path that is neither.
        """
        path = Path(pretrained)
        if path.is_dir():
            return cls(path)
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            from gs_compat.helpers import MFNetworkHelper

            return cls(MFNetworkHelper(str(path)).create_network())
        raise ValueError(f"{path}: expected a checkpoint folder or a MindFormers .yaml file")

    def calibrate(self, ptq_config: PTQConfig, layers_policy: Any = None, datasets: Any = None, **_: Any) -> None:
        """Quantize, by the configuration and the policies (an ``OrderedDict``, see ``PTQ``).

        datasets: see ``calibration.tokens``; not needed for weights that are rounded to nearest. The source stays as
        it is; the result waits for ``save_quantized``.
        """
        config = InnerPTQConfig.inner_config(ptq_config)
        policies = checked(OrderedDict() if layers_policy is None else layers_policy)
        opened = open_source(self.source)
        names = [layer.name for layer in opened.model.layers]
        recipe = translate(config, policies, names, [cache.name for cache in caches(opened.model)], FOLDER_FORMAT)
        planned = plan(self.source, recipe, adapter=opened.adapter)
        tokens: np.ndarray | None = None
        if planned.needs_data:
            if datasets is None:
                raise PlanError(["this configuration needs calibration data: pass datasets to calibrate"])
            tokens = calibration.tokens(datasets, None, planned.model.max_tokens())
        made = tempfile.TemporaryDirectory(prefix="golden-stick-")
        samples, length = (None, None) if tokens is None else tokens.shape
        output = Path(made.name, "quantized")
        quantize(self.source, recipe, output, calibration=tokens, samples=samples, seq_len=length)
        self._made = made

    def save_quantized(self, save_path: str | Path, backend: BackendTarget = BackendTarget.ASCEND) -> None:
        """Write the quantized folder: ``quant-model-*.safetensors``, their index, ``quantization_description.json``,
        and the source's other files. Raises ``RuntimeError`` before ``calibrate``, ``FileExistsError`` for a folder
        that is not empty."""
        if self._made is None:
            raise RuntimeError("nothing is quantized yet: call calibrate first")
        target = Path(save_path)
        if target.exists() and any(target.iterdir()):
            raise FileExistsError(f"{target} is not empty; choose another folder")
        shutil.copytree(Path(self._made.name, "quantized"), target, dirs_exist_ok=True)

    def forward(self, input_ids: Any, max_new_tokens: int = 1) -> Any:
        """Token ids with their likeliest continuation. Raises ``RuntimeError`` for a folder, which does not run."""
        from gs_compat.helpers import greedy

        return greedy(self._live("forward"), input_ids, max_new_tokens, int(self._live("forward").config.seq_length))

    def fake_quant(self, ptq_config: PTQConfig, layers_policy: Any = None, datasets: Any = None) -> Any:
        """Put the rounded weights into the live network, in floating point. Raises ``RuntimeError`` for a folder."""
        from gs_compat.ptq import PTQ

        return PTQ(ptq_config, layers_policy).fake_quant(self._live("fake_quant"), datasets=datasets)

    def _live(self, what: str) -> Any:
        if self.network is None:
            raise RuntimeError(f"{what} needs a live network, which a MindFormers .yaml file gives; try gsq eval")
        return self.network


class AutoQuantForCausalLM:
    """Opens any model."""

    @staticmethod
    def from_pretrained(pretrained: str | Path) -> BaseQuantForCausalLM:
        """See ``BaseQuantForCausalLM.from_pretrained``."""
        return BaseQuantForCausalLM.from_pretrained(pretrained)


def caches(model: Any) -> list[Any]:
    """What a model's attention caches, where its adapter tells."""
    return list(model.caches)
