"""What is exported computes in other people's code what it computes in ours."""

import json

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from gs_compressed_tensors.packing import pack_rows, unpack_rows
from gs_core import evaluate

W8A8_MLP = {"overrides": [{"match": "*.mlp.*", "scheme": "W8A8", "algorithms": ["rtn"]}]}
GROUP_32 = {
    "scheme": {"weights": {"format": "int4", "granularity": "group", "group_size": 32}},
}


@pytest.mark.parametrize(
    ("recipe", "changes", "flags"),
    [
        ("w4a16-gptq", {}, ()),
        ("w8a8-smoothquant", {}, ()),
        ("w8a8-static-smoothquant", {}, ()),
        ("w4a16-gptq", W8A8_MLP, ()),
        ("w4a16-rtn", GROUP_32, ()),
        # compressed-tensors 0.20 cannot keep asymmetric weights packed, it can only dequantize them
        ("w4a16-asym-rtn", {}, ("--dequantize",)),
    ],
    ids=["w4a16", "w8a8", "w8a8-static", "mixed", "group-32", "asymmetric"],
)
def test_transformers_computes_what_we_compute(exported, data, transformers_perplexity, recipe, changes, flags):
    folder = exported("tiny-llama", recipe, **changes)
    ours = evaluate(folder, data.evaluation).perplexity
    theirs = transformers_perplexity(folder, *flags)
    print(f"ours {ours:.4f}, theirs {theirs:.4f}")
    assert theirs == pytest.approx(ours, rel=0.005)
    assert 14.62 < theirs < 14.9
