"""Building a module without its weights: parameters on the meta device, buffers for real."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Every parameter that a constructor registers goes to the meta device at once.

    Buffers stay real: rotary frequencies and the like are computed by constructors and stored nowhere.
    """
    register = torch.nn.Module.register_parameter

    def register_on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def from_config(config) -> torch.nn.Module:
    """The causal language model of a transformers configuration, in float32, computing eagerly."""
    from transformers import AutoModelForCausalLM

    # Experts one by one: each is then a product of its own that can be watched.
    with parameters_on_meta():
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager")
    return module.eval().requires_grad_(False)


def find_blocks(module: torch.nn.Module) -> list[str]:
    """Names of the decoder blocks: the outermost ModuleList that holds the most parameters.

    A model without one is a single block, the whole of it, named ``""``.
    """
    lists: dict[str, int] = {}
    for name, child in module.named_modules():
        inside = any(name.startswith(outer + ".") for outer in lists)
        if isinstance(child, torch.nn.ModuleList) and len(child) and not inside:
            lists[name] = sum(p.numel() for p in child.parameters())
    if not lists or max(lists.values()) == 0:
        return [""]
    chosen = max(lists, key=lambda name: lists[name])
    return [f"{chosen}.{i}" for i in range(len(module.get_submodule(chosen)))]
