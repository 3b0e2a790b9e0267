"""What `make bench` compares: for every row, the recipes of every tool. Add a recipe here and to the tool's script."""

from typing import Any

OURS = "ours"

# Of ours: presets by their names, and what has none.
GPTAQ = {"gptq": {"sweeps": 4, "asymmetric": True, "damping": 0.05}}
HADAMARD = {"hadamard": {"r4": True}}
SCHEMES_AND_ALGORITHMS: dict[str, dict[str, Any]] = {
    "w3a16-autoround": {"scheme": "W3A16", "algorithms": ["autoround"]},
    "w2a16-autoround": {"scheme": "W2A16", "algorithms": ["autoround"]},
    "w4a4-hadamard-gptaq": {"scheme": "W4A4", "algorithms": [HADAMARD, GPTAQ]},
}

# By row and tool. Text in place of recipes says why there are none.
ROWS: dict[str, dict[str, tuple[str, ...] | str]] = {
    "W4A16 g128": {
        OURS: (
            "w4a16-gptq",
            "w4a16-gptaq",
            "w4a16-hadamard-gptaq",
            "w4a16-hadamard-guided",
            "w4a16-awq",
            "w4a16-autoround",
        ),
        "llm-compressor": ("w4a16-gptq", "w4a16-awq"),
        "GPTQModel": ("w4a16-gptq", "w4a16-awq"),
        "AutoRound": ("w4a16-autoround-50", "w4a16-autoround-200"),
        "AMD Quark": ("w4a16-gptq", "w4a16-awq"),
    },
    "W3A16 g128": {
        OURS: ("w3a16-gptq", "w3a16-gptaq", "w3a16-hadamard-gptaq", "w3a16-hadamard-guided", "w3a16-autoround"),
        "llm-compressor": ("w3a16-gptq", "w3a16-awq"),
        "GPTQModel": ("w3a16-gptq",),
        "AutoRound": ("w3a16-autoround-50", "w3a16-autoround-200"),
        "AMD Quark": ("w3a16-gptq",),
    },
    "W2A16 g32": {
        OURS: ("w2a16-gptq", "w2a16-gptaq", "w2a16-hadamard-gptaq", "w2a16-hadamard-guided", "w2a16-autoround"),
        "llm-compressor": ("w2a16-gptq",),
        "GPTQModel": ("w2a16-gptq",),
        "AutoRound": ("w2a16-autoround-50", "w2a16-autoround-200"),
        "AMD Quark": ("w2a16-gptq",),
    },
    "W8A8 dynamic": {
        OURS: ("w8a8-smoothquant", "w8a8-smoothquant-gptq"),
        "llm-compressor": ("w8a8-smoothquant", "w8a8-smoothquant-gptq"),
        "GPTQModel": "it quantizes weights alone",
        "AutoRound": ("w8a8-autoround-50",),
        "AMD Quark": ("w8a8-smoothquant",),
    },
    "W8A8 static": {
        OURS: ("w8a8-static-smoothquant", "w8a8-static-smoothquant-gptq"),
        "llm-compressor": ("w8a8-static-smoothquant", "w8a8-static-smoothquant-gptq"),
        "GPTQModel": "it quantizes weights alone",
        "AutoRound": "its static scheme is fp8",
        "AMD Quark": ("w8a8-static-smoothquant",),
    },
    "W4A4 dynamic": {
        OURS: ("w4a4-hadamard-gptq", "w4a4-hadamard-gptaq", "w4a4-flatquant", "w4a4-flatquant-gptq"),
        "llm-compressor": ("w4a4-spinquant-gptq",),
        "GPTQModel": "it quantizes weights alone",
        "AutoRound": "it writes int4 activations to no folder that an engine opens",
        "AMD Quark": ("w4a4-rotation-gptq",),
    },
    "KV int8": {
        OURS: ("kv8",),
        "llm-compressor": ("kv8",),
        "GPTQModel": "it quantizes weights alone",
        "AutoRound": "its caches are fp8",
        "AMD Quark": "its caches are fp8",
    },
}

# The model of 2048 features: the fastest peers of each recipe.
SPEED: dict[str, tuple[str, ...]] = {
    "w4a16-gptq": (OURS, "llm-compressor", "GPTQModel"),
    "w4a16-awq": (OURS, "llm-compressor"),
    "w8a8-smoothquant": (OURS, "llm-compressor", "ModelOpt"),
}

# By tool and recipe, what takes many minutes: measured with --full.
SLOW = {
    ("GPTQModel", "w4a16-awq"),
    ("AMD Quark", "w4a16-awq"),
    ("AutoRound", "w3a16-autoround-200"),
    ("AutoRound", "w2a16-autoround-200"),
}
