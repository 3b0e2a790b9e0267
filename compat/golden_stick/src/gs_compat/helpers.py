"""Network helpers: what a MindFormers YAML file says about a network, its tokenizer and its inputs.

Everything comes from local files: nothing is ever fetched.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


class NetworkHelper:
    """What a script asks about its network. Derive from it for networks that no other helper speaks for."""

    def create_network(self) -> Any:
        """The network, with its weights."""
        raise NotImplementedError(f"{type(self).__name__} has no create_network")

    def get_spec(self, name: str) -> Any:
        """One value of its configuration, such as ``seq_length``."""
        raise NotImplementedError(f"{type(self).__name__} has no get_spec")

    def create_tokenizer(self, **kwargs: Any) -> Any:
        """Its tokenizer."""
        raise NotImplementedError(f"{type(self).__name__} has no create_tokenizer")

    def generate(self, network: Any, input_ids: Any, max_new_tokens: int | None = None, **kwargs: Any) -> Any:
        """Prompts with what the network says next."""
        raise NotImplementedError(f"{type(self).__name__} has no generate")

    def assemble_inputs(self, input_ids: np.ndarray, **kwargs: Any) -> Any:
        """What the network is called with for these tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no assemble_inputs")


class MFNetworkHelper(NetworkHelper):
    """Speaks for a network that a YAML file, or the ``MindFormerConfig`` made of it, describes.

    ``modules``: what has to be imported for the architecture to be known to MindFormers, where it is not its own.

    Raises ``TypeError`` for another configuration, ``ValueError`` for a path that is no file.
    """

    modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any = None):
        from mindformers import MindFormerConfig, build_parallel_config

        if isinstance(config, str | Path):
            if not Path(config).is_file():
                raise ValueError(f"config: {config} is not a file")
            config = MindFormerConfig(str(config))
        elif not isinstance(config, MindFormerConfig):
            raise TypeError(f"config: expected a path or a MindFormerConfig, got {type(config).__name__}")
        self.mf_config = config
        build_parallel_config(config)
        self._model["parallel_config"] = config.parallel_config
        self._model["moe_config"] = config.moe_config

    @property
    def _model(self) -> Any:
        return self.mf_config.model.model_config

    @property
    def _on_cpu(self) -> bool:
        return bool(self.mf_config.context.device_target == "CPU")

    def get_spec(self, name: str) -> Any:
        """A value of ``model.model_config``, or the tokenizer's ``vocab_file``. Raises ``KeyError``."""
        if name == "vocab_file":
            return self.mf_config.processor.tokenizer.vocab_file
        if name in self._model:
            return self._model[name]
        raise KeyError(f"model.model_config of the YAML file has no '{name}'; it has: {', '.join(sorted(self._model))}")

    def create_network(self) -> Any:
        """The network of ``model.arch``, with the weights of ``load_checkpoint`` where that is set."""
        from mindformers import AutoModel, build_context
        from mindspore import set_context
        from mindspore.nn.utils import no_init_parameters

        if self._on_cpu:  # many small products are much faster one by one, and errors surface where they belong
            set_context(pynative_synchronize=True)
        build_context(self.mf_config)
        self._register()
        source = self.mf_config.load_checkpoint
        if not source:
            network = AutoModel.from_config(self.mf_config, download_checkpoint=False)
        else:
            with no_init_parameters():
                network = AutoModel.from_config(self.mf_config, download_checkpoint=False)
            load_weights(network, Path(source))
        network.set_train(False)
        network.phase = "predict"
        return network

    def _register(self) -> None:
        """Raise ``ImportError`` when MindFormers does not know the architecture, and the modules are not there."""
        from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

        name = self.mf_config.model.arch.type
        if MindFormerRegister.is_exist(MindFormerModuleType.MODELS, name):
            return
        for module in self.modules:
            try:
                import_module(module)
            except ImportError as error:
                raise ImportError(
                    f"MindFormers has no network '{name}' of its own, and {module} cannot be imported ({error}); put "
                    "the root of MindFormers' repository on PYTHONPATH, or name another model.arch.type"
                ) from error

    def create_tokenizer(self, **kwargs: Any) -> Any:
        """The tokenizer of ``processor.tokenizer``."""
        from mindformers.models.build_tokenizer import build_tokenizer

        return build_tokenizer(self.mf_config.processor.tokenizer, **kwargs)

    def generate(
        self, network: Any, input_ids: np.ndarray | Sequence[Any], max_new_tokens: int | None = None, **kwargs: Any
    ) -> Any:
        """Token ids of each prompt and its continuation, by the YAML file's sampling.

        On a CPU, whose operators MindFormers' own search needs more of than there are, the likeliest token each time.
        """
        if self._on_cpu:
            return greedy(network, input_ids, max_new_tokens or 1, self.get_spec("seq_length"))
        asked = {name: self.get_spec(name) for name in ("do_sample", "top_p", "top_k")} | kwargs
        return network.generate(
            input_ids, max_length=self.get_spec("seq_length"), max_new_tokens=max_new_tokens, **asked
        )

    def assemble_inputs(self, input_ids: np.ndarray, **kwargs: Any) -> tuple[Any, ...]:
        """The positional arguments of a Llama network of MindFormers for tokens ``(batch, n)``, padded to its
        ``batch_size`` and ``seq_length``; with ``use_past``, where in the cache each token goes.

        Raises ``ValueError`` for more tokens than those.
        """
        from mindspore import Tensor

        rows, length = (int(self.get_spec(name)) for name in ("batch_size", "seq_length"))
        if input_ids.ndim != 2 or input_ids.shape[0] > rows or input_ids.shape[1] > length:
            raise ValueError(f"input_ids: got {input_ids.shape}, the network takes at most ({rows}, {length})")
        missing = [(0, rows - input_ids.shape[0]), (0, length - input_ids.shape[1])]
        padded = Tensor(np.pad(input_ids, missing, constant_values=self.get_spec("pad_token_id")).astype(np.int32))
        if not self.get_spec("use_past"):
            return (padded, *[None] * 11)
        size = int(self.get_spec("block_size"))
        tables = np.arange(rows * -(-length // size), dtype=np.int32).reshape(rows, -1)
        slots = (tables[:, :, None] * size + np.arange(size, dtype=np.int32)).reshape(rows, -1)[:, : input_ids.shape[1]]
        return (padded, *[None] * 9, Tensor(tables), Tensor(slots.reshape(-1).astype(np.int32)))


def load_weights(network: Any, source: Path) -> None:
    """Put a ``.ckpt`` or safetensors file, or a folder of them, into a network.

    Raises ``ValueError`` when there is none, or when it lacks a parameter of the network (caches may be missing).
    """
    import mindspore as ms

    files = [source] if source.is_file() else sorted([*source.glob("*.safetensors"), *source.glob("*.ckpt")])
    if not files:
        raise ValueError(f"load_checkpoint: {source} is no checkpoint, and no folder with .ckpt or .safetensors files")
    parameters: dict[str, Any] = {}
    for file in files:
        kind = "safetensors" if file.suffix == ".safetensors" else "ckpt"
        parameters |= ms.load_checkpoint(str(file), format=kind)
    missing, _ = ms.load_param_into_net(network, parameters)
    missing = [name for name in missing if "key_cache" not in name and "value_cache" not in name]
    if missing:
        raise ValueError(
            f"load_checkpoint: {source} has no tensor for {', '.join(missing[:3])} ({len(missing)} missing)"
        )


def greedy(network: Any, input_ids: Any, max_new_tokens: int, longest: int) -> list[np.ndarray]:
    """Each prompt with its likeliest continuation, one token after the other, without a cache."""
    import mindspore as ms

    found = []
    for prompt in np.atleast_2d(np.asarray(input_ids)):
        ids = np.zeros((1, longest), np.int32)
        ids[0, : len(prompt)] = prompt
        end = min(longest, len(prompt) + max_new_tokens)
        for position in range(len(prompt), end):
            output = network(ms.Tensor(ids))
            logits = (output[0] if isinstance(output, tuple) else output).asnumpy().astype(np.float32)
            ids[0, position] = logits.reshape(-1, longest, logits.shape[-1])[0, position - 1].argmax()
        found.append(ids[0, :end].copy())
    return found


class MFLlama2Helper(MFNetworkHelper):
    """For ``LlamaForCausalLM``."""


class MFParallelLlama2Helper(MFLlama2Helper):
    """For ``ParallelLlamaForCausalLM``, whose code is in MindFormers' repository and in no wheel."""

    modules: ClassVar[tuple[str, ...]] = ("research.llama3_1.llama",)


class Qwen3Helper(MFLlama2Helper):
    """For the networks of Qwen3."""


class MFParallelTeleChat2Helper(MFParallelLlama2Helper):
    """For TeleChat2."""

    modules = ("research.telechat2.infer.telechat", "research.telechat2.telechat_config")


class MFDSV3Helper(MFNetworkHelper):
    """For DeepSeek-V3."""

    modules = ("research.deepseek3.deepseek3", "research.deepseek3.deepseek3_config")
