"""The options of single algorithms, as ``algo_args`` takes them."""

from dataclasses import dataclass, field

from gs_compat.checks import fraction, typed
from gs_compat.yaml_files import YamlFile


@dataclass
class GPTQQuantConfig(YamlFile):
    """GPTQ: ``block_size`` features between two matrix products of feedback; ``desc_act``: the largest activations
    first; ``damp_percent``: added to the Hessian's diagonal, as a fraction of its median (there: of its mean);
    ``static_groups``: every scale is chosen before the first feature is rounded.

    Raises ``TypeError`` and ``ValueError``.
    """

    block_size: int = 128
    desc_act: bool = False
    damp_percent: float = 0.01
    static_groups: bool = False

    def __post_init__(self) -> None:
        typed("block_size", self.block_size, int)
        typed("desc_act", self.desc_act, bool)
        typed("damp_percent", self.damp_percent, float)
        typed("static_groups", self.static_groups, bool)
        if self.block_size < 1:
            raise ValueError(f"block_size: got {self.block_size}, expected at least 1")
        fraction("damp_percent", self.damp_percent)


@dataclass
class AWQConfig(YamlFile):
    """AWQ: the exponents and clipping ratios to try (one number: no search); ``duo_scaling``: scales depend on the
    weights as well as on the activations.

    Raises ``TypeError`` and ``ValueError``.
    """

    duo_scaling: bool = True
    smooth_alpha: list[float] | float = field(default_factory=lambda: [i / 20 for i in range(20)])
    weight_clip_ratio: list[float] | float = field(default_factory=lambda: [1 - i / 20 for i in range(10)])

    def __post_init__(self) -> None:
        typed("duo_scaling", self.duo_scaling, bool)
        for name in ("smooth_alpha", "weight_clip_ratio"):
            value = getattr(self, name)
            typed(name, value, float, list)
            if value == []:
                raise ValueError(f"{name}: the list is empty; give at least one number")
            for item in value if isinstance(value, list) else [value]:
                typed(name, item, float, int)
                fraction(name, item)
                if name == "weight_clip_ratio" and not item:
                    raise ValueError("weight_clip_ratio: a range clipped to 0 holds nothing")


@dataclass
class SmoothQuantConfig(YamlFile):
    """SmoothQuant: how much of the difficulty moves from activations to weights, 0 to 1.

    Raises ``TypeError`` and ``ValueError``.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        typed("alpha", self.alpha, float)
        fraction("alpha", self.alpha)


AlgorithmConfig = GPTQQuantConfig | AWQConfig | SmoothQuantConfig
