"""Building a module without its weights: parameters on the meta device, buffers for real."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

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

    torch.nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def from_config(config: Any, custom: Any = None) -> torch.nn.Module:
    """The causal language model of a transformers configuration, in float32, computing eagerly.

    custom: the class of the model if code in the checkpoint folder defines it.
    """
    # Experts one by one: each is then a product of its own that can be watched.
    with parameters_on_meta():
        module = (custom or _class_of(config))._from_config(config, dtype=torch.float32, experts_implementation="eager")
    return module.eval().requires_grad_(False)


def _class_of(config: Any) -> Any:
    """The class that the configuration names, or else the causal language model of its type."""
    import transformers

    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    for cls in named:
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            return cls
    return transformers.AutoModelForCausalLM._model_mapping[type(config)]


def find_blocks(module: torch.nn.Module, used: Collection[str]) -> list[str]:
    """Names of the decoder blocks: the outermost ModuleList with the most parameters in use.

    used: names of the parameters that took part in a run (a vision tower does not). A model without such a list
    is a single block, the whole of it, named ``""``.
    """
    lists: dict[str, int] = {}
    for name, child in module.named_modules():
        inside = any(name.startswith(outer + ".") for outer in lists)
        if isinstance(child, torch.nn.ModuleList) and len(child) and not inside:
            own = {f"{name}.{leaf}": p.numel() for leaf, p in child.named_parameters()}
            lists[name] = sum(size for leaf, size in own.items() if leaf in used)
    if not lists or max(lists.values()) == 0:
        return [""]
    chosen = max(lists, key=lambda name: lists[name])
    return [f"{chosen}.{i}" for i in range(len(module.get_submodule(chosen)))]
