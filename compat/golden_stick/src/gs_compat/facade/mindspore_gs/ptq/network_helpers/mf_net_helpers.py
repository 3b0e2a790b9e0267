"""What speaks for the networks of MindFormers."""

from gs_compat.helpers import (
    MFDSV3Helper,
    MFLlama2Helper,
    MFNetworkHelper,
    MFParallelLlama2Helper,
    MFParallelTeleChat2Helper,
    Qwen3Helper,
)

__all__ = [
    "MFDSV3Helper",
    "MFLlama2Helper",
    "MFNetworkHelper",
    "MFParallelLlama2Helper",
    "MFParallelTeleChat2Helper",
    "Qwen3Helper",
]
