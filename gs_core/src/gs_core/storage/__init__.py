"""Checkpoints on disk: a streaming, distrustful reader and a durable writer of safetensors shards."""

from gs_core.storage.reader import INDEX, SINGLE, Checkpoint, DerivedTensor, StoredTensor, read_header
from gs_core.storage.writer import (
    Tensor,
    copy_file,
    replacing,
    sync_folder,
    write_json,
    write_safetensors,
    write_text,
)

__all__ = [
    "INDEX",
    "SINGLE",
    "Checkpoint",
    "DerivedTensor",
    "StoredTensor",
    "Tensor",
    "copy_file",
    "read_header",
    "replacing",
    "sync_folder",
    "write_json",
    "write_safetensors",
    "write_text",
]
