"""Checkpoints on disk: streaming, distrustful readers and durable writers of safetensors and MindSpore's .ckpt."""

from gs_core.storage.ckpt import read_ckpt, write_ckpt
from gs_core.storage.reader import INDEX, SINGLE, Checkpoint, read_header
from gs_core.storage.tensors import DerivedTensor, StoredTensor, let_go
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
    "let_go",
    "read_ckpt",
    "read_header",
    "replacing",
    "sync_folder",
    "write_ckpt",
    "write_json",
    "write_safetensors",
    "write_text",
]
