"""``PTQ``: quantize a live network in place, as Golden Stick's scripts ask for it."""

import tempfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from gs_compat import calibration
from gs_compat.config import PTQConfig
from gs_compat.inner import InnerPTQConfig
from gs_compat.log import logger
from gs_compat.policies import assign, checked
from gs_compat.summary import table
from gs_compat.translate import recipe_for
from gs_compat.words import OutliersSuppressionType, PTQApproach, PTQMode
from gs_core import PlanError, plan, quantize

FRAMEWORK = "mindformers"


class PTQ:
    """Quantizes what its configuration says, every layer by the policy that matches its name.

    config: a ``PTQConfig``; by default int8 weights. layer_policies: an ``OrderedDict`` of regular expressions, matched
    from the start of ``network.`` and the layer's name, and the ``PTQConfig`` of such layers (see ``policies``).

    ``decoder_layer_types``: classes of cells that are decoder blocks. They are found without being named; naming them
    overrules what is found. ``pipeline``: the stages that every block goes through, for those who look.

    Raises ``TypeError`` and ``ValueError`` as ``PTQConfig`` does.
    """

    pipeline: ClassVar[list[Any]] = ["observe", "smooth", "quantize", "pack", "export"]
    approach: ClassVar[PTQApproach] = PTQApproach.PTQ

    def __init__(self, config: PTQConfig | None = None, layer_policies: Any = None):
        self._config = InnerPTQConfig.inner_config(PTQConfig() if config is None else config, self.approach)
        self.layer_policies = checked(OrderedDict() if layer_policies is None else layer_policies)
        self.decoder_layer_types: list[type] = []
        self._layers: list[dict[str, Any]] = []

    def set_ptq_config(self, **values: Any) -> None:
        """Other values for fields and switches, validated together. Raises ``AttributeError`` for unknown ones."""
        tried = replace(self._config)
        for name, value in values.items():
            setattr(tried, name, value)
        tried.check()
        self._config = tried

    def apply(
        self, network: Any, network_helper: Any = None, datasets: Any = None, *, framework: str = FRAMEWORK
    ) -> Any:
        """Quantize a network in place, and return it. In DEPLOY mode, only prepare it to load a quantized checkpoint.

        network_helper, datasets: told apart by what they are, so ``apply(network, datasets)`` is understood too.
        datasets: see ``calibration.tokens``; not needed for weights that are rounded to nearest.

        Afterwards ``network.parameters_dict()`` has the names, shapes and dtypes of Golden Stick's own, and the
        network runs.

        Raises a ``GoldenStickError`` or ``ValueError`` that says what to do; the network is then as it was.
        """
        if framework != FRAMEWORK:
            raise ValueError(f"framework: got {framework!r}, there is: {FRAMEWORK}. For folders use gs_core.quantize")
        if datasets is None and not hasattr(network_helper, "get_spec"):
            network_helper, datasets = None, network_helper
        return self._quantize(network, network_helper, datasets, self._config.fake_quant)

    def _quantize(self, network: Any, helper: Any, datasets: Any, rounded: bool) -> Any:
        from gs_compat.network import LiveNetwork, pad_token

        self._config.check()
        live = LiveNetwork(network, self.decoder_layer_types)
        configs = assign([*live.layers, *live.caches], self._config, self.layer_policies)
        recipe = recipe_for(configs, live.caches)
        if rounded:
            live.by_rows()
        else:
            live.check(configs)
        if rounded and any(of and (of.act_quant_dtype or of.kvcache_quant_dtype) for of in configs.values()):
            logger.warning("fake_quant rounds weights alone: activations and caches stay in floating point")
        if self._config.mode is PTQMode.DEPLOY:
            live.prepare(configs)
            return network
        planned = plan(network, recipe, adapter=live.adapter)
        for said in planned.warnings:
            logger.warning("%s", said)
        if planned.model.kept:
            kept = "; ".join(f"{name} ({why})" for name, why in planned.model.kept.items())
            logger.warning("not quantized whatever the configuration: %s", kept)
        tokens = None
        if planned.needs_data:
            if datasets is None:
                raise PlanError(["this configuration needs calibration data: pass datasets to apply"])
            tokens = calibration.tokens(datasets, pad_token(network, helper), planned.model.max_tokens())
        samples, length = (None, None) if tokens is None else tokens.shape
        with tempfile.TemporaryDirectory(prefix="golden-stick-") as folder:
            output = Path(folder, "quantized")
            report = quantize(
                network, recipe, output, calibration=tokens, samples=samples, seq_len=length, adapter=live.adapter
            )
            if rounded:
                live.take_rounded(output, recipe.format)
            else:
                live.take(output, configs)
        for note in report.data["notes"]:
            logger.info("%s", note)
        self._layers = report.layers
        return network

    def convert(self, network: Any, ckpt_path: str = "") -> Any:
        """The network, which is converted already; with ``ckpt_path``, after loading that checkpoint into it."""
        if ckpt_path:
            from gs_compat.helpers import load_weights

            load_weights(network, Path(ckpt_path))
        return network

    def fake_quant(self, network: Any, network_helper: Any = None, datasets: Any = None) -> Any:
        """As ``apply``, but the rounded weights go into the network's own floating-point layers. What they are
        multiplied with, and what is cached, stays in floating point."""
        return self._quantize(network, network_helper, datasets, rounded=True)

    def summary(self, network: Any) -> str:
        """A table of the network's quantized layers, printed and returned."""
        from gs_compat.network import quantized

        found = table(quantized(network), {row["layer"]: row for row in self._layers})
        print(found, flush=True)
        return found


class RoundToNearest(PTQ):
    """``PTQ`` for weights (and caches) alone, rounded to nearest."""

    approach = PTQApproach.RTN

    def __init__(self, config: PTQConfig | None = None, layer_policies: Any = None):
        super().__init__(config, layer_policies)
        if self._config.act_quant_dtype or self._config.outliers_suppression is not OutliersSuppressionType.NONE:
            raise ValueError("RoundToNearest quantizes weights and caches alone; use PTQ for activations")


class SmoothQuant(PTQ):
    """``PTQ`` that smooths, for scripts older than ``outliers_suppression``: int8 weights and activations."""

    approach = PTQApproach.SMOOTH_QUANT

    def __init__(self, config: PTQConfig | None = None, layer_policies: Any = None):
        asked = replace(
            config or PTQConfig(),
            weight_quant_dtype="int8",
            act_quant_dtype="int8",
            outliers_suppression=OutliersSuppressionType.SMOOTH,
        )
        super().__init__(asked, layer_policies)
