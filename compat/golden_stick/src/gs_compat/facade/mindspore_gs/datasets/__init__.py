"""Calibration and evaluation data from local files."""

from gs_compat.datasets import (
    create_boolq_dataset,
    create_calibrate_dataset,
    create_ceval_dataset,
    create_gsm8k_dataset,
    create_squad_dataset,
    create_wikitext_dataset,
    get_datasets,
)

__all__ = [
    "create_boolq_dataset",
    "create_calibrate_dataset",
    "create_ceval_dataset",
    "create_gsm8k_dataset",
    "create_squad_dataset",
    "create_wikitext_dataset",
    "get_datasets",
]
