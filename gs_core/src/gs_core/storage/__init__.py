"""Checkpoints on disk: streaming, distrustful readers and durable writers of safetensors and MindSpore's .ckpt."""

from gs_core.storage.ckpt import read_ckpt, write_ckpt
from gs_core.storage.reader import INDEX, SINGLE, Checkpoint, read_header
from gs_core.storage.regular import check_link
from gs_core.storage.tensor_checks import TensorSpec, check_float, check_unread
from gs_core.storage.tensors import DerivedTensor, StoredTensor, let_go
from gs_core.storage.writer import (
    WORK,
    Tensor,
    begun,
    copy_file,
    file_digest,
    is_plain_file,
    is_plain_name,
    record_begun,
    replacing,
    sync_folder,
    write_json,
    write_safetensors,
    write_text,
)

__all__ = [
    "INDEX",
    "SINGLE",
    "WORK",
    "Checkpoint",
    "DerivedTensor",
    "StoredTensor",
    "Tensor",
    "TensorSpec",
    "begun",
    "check_float",
    "check_link",
    "check_unread",
    "copy_file",
    "file_digest",
    "is_plain_file",
    "is_plain_name",
    "let_go",
    "read_ckpt",
    "read_header",
    "record_begun",
    "replacing",
    "sync_folder",
    "write_ckpt",
    "write_json",
    "write_safetensors",
    "write_text",
]
