"""The enumerations of ``mindspore_gs``, with its values: what a configuration may ask for."""

from enum import Enum
from typing import Self

from gs_schemas import unknown


class Word(Enum):
    """A word that can also be read from its value, in any case."""

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def from_str(cls, name: str) -> Self:
        """The member with that value or that name. Raises ``ValueError`` with what was probably meant; a typing error
        must not quietly mean "none"."""
        for member in cls:
            if name.lower() in (member.value.lower(), member.name.lower()):
                return member
        raise ValueError(unknown(cls.__name__, name, [member.value for member in cls]))


class PTQMode(Word):
    """``QUANTIZE``: compute codes and scales. ``DEPLOY``: only prepare the network to load them."""

    QUANTIZE = "quantize"
    DEPLOY = "deploy"


class BackendTarget(Word):
    """Named for scripts; the quantized cells run wherever MindSpore does."""

    NONE = "none"
    ASCEND = "ascend"


class OutliersSuppressionType(Word):
    """What happens to outlier channels before anything is rounded."""

    SMOOTH = "smooth"
    AWQ = "awq"
    OUTLIER_SUPPRESSION_PLUS = "outlier-suppression+"
    OUTLIER_SUPPRESSION_LITE = "outlier-suppression-lite"
    NONE = "none"


class PrecisionRecovery(Word):
    """What makes up for the rounding of weights."""

    GPTQ = "gptq"
    NONE = "none"


class QuantGranularity(Word):
    """What shares a scale."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"
    PER_TOKEN = "per_token"
    PER_GROUP = "per_group"


class PTQApproach(Word):
    """The algorithm a configuration is for, as older scripts name it."""

    SMOOTH_QUANT = "smooth_quant"
    RTN = "rtn"
    GPTQ = "gptq"
    PTQ = "ptq"
    AWQ = "awq"


class LayerQuantizeAlgo(Word):
    """What ``fallback_blacklist`` may ask for in a layer."""

    A16W8 = "a16w8"
    A8W8 = "a8w8"
    A8DYNAMICW8 = "a8dynamic-w8"
