"""PEFT's LoRA model, which builds our layers for our configurations and its own for plain ones."""

import logging
import re
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinelr_lightning.adapters.config import FactorizedLoraConfig, as_lora
from sinelr_lightning.adapters.kinds import adopt, upgrade
from sinelr_lightning.adapters.layers import FactorizedLoraLayer
from sinelr_lightning.layers.evaluation import evaluating

__all__ = ["FactorizedLoraModel", "check_patterns", "probe_tokens"]

log = logging.getLogger(__name__)


class FactorizedLoraModel(LoraModel):
    """Stands in PEFT's table in the place of `LoraModel`; what has a plain `LoraConfig` is built as ever."""

    # -- building ----------------------------------------------------------------------------------------------------
    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT does.

        Raises:
            ValueError: an adapter's name that its weights could not be found by, or a pattern of `target_modules`
                that no module matches.
        """
        config = self.peft_config[adapter_name]
        if isinstance(config, FactorizedLoraConfig):
            _check_name(adapter_name, self.prefix)
            if config.target_modules and kwargs.get("state_dict") is None:
                check_patterns(model, config.target_modules, "target_modules")
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            if isinstance(config, FactorizedLoraConfig):
                _take_out(model, adapter_name)
            raise

    @staticmethod
    def _create_new_module(lora_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        if not isinstance(lora_config, FactorizedLoraConfig):
            return LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        plain = as_lora(lora_config)
        plain.use_dora = False  # ours follows
        layer = upgrade(LoraModel._create_new_module(plain, adapter_name, target, **kwargs), kwargs["target_name"])
        adopt(layer, adapter_name, lora_config)
        return layer

    def _create_and_replace(
        self,
        lora_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if isinstance(lora_config, FactorizedLoraConfig) and isinstance(target, LoraLayer):
            target = upgrade(target, target_name)
            setattr(parent, target_name, target)
        super()._create_and_replace(lora_config, adapter_name, target, target_name, parent, *args, **kwargs)

    # -- what cannot be right ----------------------------------------------------------------------------------------
    def add_weighted_adapter(self, adapters: list[str], *args: Any, **kwargs: Any) -> None:
        """As PEFT does, for plain adapters.

        Raises:
            ValueError: a factorized one among them: no sum of factors is the factors of a sum.
        """
        for name in adapters:
            if isinstance(self.peft_config.get(name), FactorizedLoraConfig):
                raise ValueError(
                    f"adapter {name} is a {type(self.peft_config[name]).__name__}: its factors cannot be combined "
                    "linearly; merge the adapters into the model one after another instead"
                )
        super().add_weighted_adapter(adapters, *args, **kwargs)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """As PEFT does; the entries of one of our adapters must be all there, and fit.

        Raises:
            ValueError: an entry is missing, has no place or another shape.
        """
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        if isinstance(config, FactorizedLoraConfig):
            here = model.state_dict()
            wanted = _own_entries(here, cls.prefix, adapter_name)
            wanted |= cls._get_learnable_bias_state_dict(model, here, config).keys()
            _check_entries(here, wanted, remapped, adapter_name)
        return remapped

    # -- merging -----------------------------------------------------------------------------------------------------
    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT does. For our adapters tied weights are untied before, and what rounding cost is printed after."""
        with self._merging(adapter_names):
            super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = True,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        arguments = (merge, progressbar, safe_merge, adapter_names)
        if not merge:
            return super()._unload_and_optionally_merge(*arguments)
        with self._merging(adapter_names):
            return super()._unload_and_optionally_merge(*arguments)

    @contextmanager
    def _merging(self, adapter_names: list[str] | None) -> Generator[None]:
        names = adapter_names or self.active_adapters
        layers = [
            layer
            for layer in self.model.modules()
            if isinstance(layer, FactorizedLoraLayer) and any(layer.ours(adapter) for adapter in names)
        ]
        if not layers:
            yield
            return
        _untie(self.model, layers)
        before = _probe(self.model)
        yield
        after = _probe(self.model)
        rounding = [layer.merge_rounding for layer in layers if layer.merge_rounding is not None]
        lines = [f"weights differ by at most {max(rounding):.1e} from the exact ones"] if rounding else []
        if before is not None and after is not None:
            lines.append(f"logits, up to {before.abs().max():.2g}, by at most {(after - before).abs().max():.1e}")
        sys.stderr.write(f"merged {', '.join(names)}: {'; '.join(lines) or 'nothing to compare'}\n")


def probe_tokens(vocabulary: int) -> Tensor:
    """A few tokens [2, 12] on which two models can be compared."""
    return torch.randint(vocabulary, (2, 12), generator=torch.Generator().manual_seed(0))


def _check_name(name: str, prefix: str) -> None:
    if name in prefix or prefix in name or "." in name:
        raise ValueError(
            f"an adapter cannot be called {name!r}: its weights are found by the name, which must hold no dot and "
            f"share nothing with {prefix!r}"
        )


def check_patterns(model: nn.Module, patterns: str | Iterable[str], setting: str) -> None:
    """See to it that each pattern is the end of some module's name, or a single text an expression of a whole one.

    Raises:
        ValueError: one is not; names near it, and those of linear layers.
    """
    names = [name.replace(".base_layer", "") for name, _ in model.named_modules() if name]
    ends = "ends in"
    if isinstance(patterns, str):
        try:
            if patterns == "all-linear" or any(re.fullmatch(patterns, name) for name in names):
                return
        except re.error as error:
            raise ValueError(f"{setting}: {patterns!r} is no regular expression: {error}") from error
        ends, patterns = "matches", [patterns]
    else:
        patterns = [p for p in map(str, patterns) if not any(n == p or n.endswith(f".{p}") for n in names)]
    for pattern in patterns:
        endings = {".".join(name.split(".")[-1 - pattern.count(".") :]) for name in names}
        near = get_close_matches(pattern, endings, cutoff=0.4)
        linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raise ValueError(
            f"{setting}: no module's name {ends} {pattern!r}; near it are {', '.join(near) or 'none'}; "
            f"linear layers here end in {', '.join(sorted(linear)[:12]) or 'nothing: there are none'}"
        )


def _take_out(model: nn.Module, adapter: str) -> None:
    """Remove what an injection that failed has left, so that the model is as it was."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.delete_adapter(adapter)
            if not layer.scaling:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _own_entries(here: dict[str, Tensor], prefix: str, adapter: str) -> set[str]:
    """Keys of the adapter's entries: its name stands behind a part of the key that begins with the prefix."""
    return {key for key in here if any(a.startswith(prefix) and b == adapter for a, b in pairwise(key.split(".")))}


def _check_entries(here: dict[str, Tensor], wanted: set[str], given: dict[str, Tensor], adapter: str) -> None:
    """Compare what was given with the adapter's own entries of the model."""
    missing, unexpected = sorted(wanted - given.keys()), sorted(given.keys() - here.keys())
    if missing or unexpected:
        parts = [
            f"{word} {keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}"
            for word, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise ValueError(f"the weights do not fit adapter {adapter} of this model: {', '.join(parts)}")
    for key in sorted(wanted):
        if here[key].shape != given[key].shape:
            raise ValueError(
                f"the adapter is of another base model or rank: {key} is {list(given[key].shape)} in the file, "
                f"{list(here[key].shape)} here"
            )


def _untie(model: nn.Module, layers: list[FactorizedLoraLayer]) -> None:
    """Give a layer that shares its weight with another module one of its own: the update is for this layer alone."""
    modules = list(model.named_modules())
    for layer in layers:
        base, weight = layer.base, layer.base.weight
        others = [name for name, other in modules if other is not base and other._parameters.get("weight") is weight]
        if not others:
            continue
        base.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        config = getattr(model, "config", None)
        if config is not None and hasattr(config, "get_text_config"):
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        log.warning(
            "the weight merged into was shared with %s: untied, the model now holds both (tie_word_embeddings=False)",
            ", ".join(others),
        )


def _probe(model: nn.Module) -> Tensor | None:
    """Logits of a few tokens, if it is a model that asks for no more than tokens."""
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        return None
    if model.config.is_encoder_decoder:
        return None
    try:
        tokens = probe_tokens(model.config.get_text_config().vocab_size).to(model.device)
        with evaluating(model), torch.enable_grad():  # with gradients no layer keeps its whole weight
            return model(input_ids=tokens)[0].detach().float()
    except Exception as error:  # noqa: BLE001  (whatever such a model misses, it can be merged)
        log.debug("no logits to compare: %s", error)
        return None
