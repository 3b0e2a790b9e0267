"""Load files into networks that mindspore_gs deployed, each as its name says: ``CASE-DTYPE.EXTENSION`` in FOLDER.

    python mindspore_deployed.py RESULT FOLDER

Writes into RESULT, by file name, the parameters of the network and of the file, and what is left over when
``load_param_into_net`` puts one into the other.
"""

import importlib.util
import json
import sys
from pathlib import Path

import mindspore
from mindformers.modules.layers import Linear
from mindformers.modules.paged_attention_mgr import PagedAttentionMgr
from mindspore import dtype, nn

# The real one, which lies apart in the environment.
sys.path.insert(0, str(Path(importlib.util.find_spec("mindspore").origin).parents[4] / "aside"))
from mindspore_gs.common import BackendTarget
from mindspore_gs.ptq import (
    PTQ,
    AWQConfig,
    GPTQQuantConfig,
    OutliersSuppressionType,
    PrecisionRecovery,
    PTQConfig,
    PTQMode,
    QuantGranularity,
)

INT4 = {"weight_quant_dtype": dtype.qint4x2}
GROUPS = INT4 | {"weight_quant_granularity": QuantGranularity.PER_GROUP, "group_size": 64}
TOKEN = {"act_quant_dtype": dtype.int8, "act_quant_granularity": QuantGranularity.PER_TOKEN}
CASES = {
    "rtn8": {},
    "rtn4": INT4,
    "rtn4g": GROUPS,
    "sq": {"act_quant_dtype": dtype.int8, "outliers_suppression": OutliersSuppressionType.SMOOTH},
    "a8w8": {"act_quant_dtype": dtype.int8},
    "a8dynw8": TOKEN,
    "awq": GROUPS | {"outliers_suppression": OutliersSuppressionType.AWQ, "algo_args": AWQConfig()},
    "a8w4": GROUPS
    | TOKEN
    | {
        "precision_recovery": PrecisionRecovery.GPTQ,
        "algo_args": GPTQQuantConfig(desc_act=True, static_groups=True),
    },
    "kv": {"weight_quant_dtype": None, "kvcache_quant_dtype": dtype.int8},
}


class Block(nn.Cell):
    """Two layers of 128 inputs, one with a bias, and a cache of two heads of 16."""

    def __init__(self, of):
        super().__init__()
        self.wq = Linear(128, 32, has_bias=True, compute_dtype=of, param_init_type=of)
        self.w2 = Linear(128, 64, has_bias=False, compute_dtype=of, param_init_type=of)
        self.attention = PagedAttentionMgr(4, 16, 2, (8, 16, 2, 16), compute_dtype=of)


class Network(nn.Cell):
    def __init__(self, of):
        super().__init__()
        self.layers = nn.CellList([Block(of)])


def deployed(case: str, of) -> Network:
    ptq = PTQ(PTQConfig(mode=PTQMode.DEPLOY, backend=BackendTarget.ASCEND, **CASES[case]))
    ptq.decoder_layer_types.append(Block)
    return ptq.apply(Network(of))


def described(parameters) -> dict:
    return {name: [str(p.dtype), list(p.shape)] for name, p in parameters.items() if not name.endswith("_cache")}


def main() -> None:
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE, pynative_synchronize=True)
    found = {}
    for file in sorted(Path(sys.argv[2]).iterdir()):
        case, of = file.stem.split("-")
        network = deployed(case, getattr(dtype, of))
        wanted = described(network.parameters_dict())
        loaded = mindspore.load_checkpoint(str(file), format=file.suffix.removeprefix("."))
        found[file.name] = {"network": wanted, "file": described(loaded)}
        missing, left = mindspore.load_param_into_net(network, loaded)
        found[file.name] |= {"missing": [n for n in missing if not n.endswith("_cache")], "left": left}
    Path(sys.argv[1]).write_text(json.dumps(found))


main()
