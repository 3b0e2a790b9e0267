"""Where scripts look for whole models, too."""

from gs_compat.auto import AutoQuantForCausalLM, BaseQuantForCausalLM

__all__ = ["AutoQuantForCausalLM", "BaseQuantForCausalLM"]
