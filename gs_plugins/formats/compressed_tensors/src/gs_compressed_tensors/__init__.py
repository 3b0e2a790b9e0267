"""The compressed-tensors checkpoint format, written by our own code."""

from gs_compressed_tensors.plugin import CompressedTensors

__all__ = ["CompressedTensors"]
