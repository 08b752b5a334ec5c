"""A factorized adapter as the nearest plain LoRA, for tools that know no other."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from sinelr_lightning.adapters.kinds import FactorizedLoraEmbedding
from sinelr_lightning.adapters.layers import FactorizedLoraLayer
from sinelr_lightning.layers.factorization import wide

__all__ = ["PlainLora", "as_plain_lora"]

EXACT_UP_TO = 2048  # the shorter side of a matrix whose whole SVD is taken; a larger one is projected first


@dataclass(frozen=True)
class PlainLora:
    """A plain LoRA.

    Attributes:
        config: for PEFT; lora_alpha = r, so that the update is B·A as it stands.
        state: entries as PEFT's files have them.
        energy: share of the updates' squared Frobenius norm, over all layers, that is kept.
    """

    config: LoraConfig
    state: dict[str, Tensor]
    energy: float


@torch.no_grad()
def as_plain_lora(model: PeftModel, rank: int, adapter: str = "default") -> PlainLora:
    """Approximate each layer's update W − W₀, magnitude and all, by its truncated SVD of this rank.

    Args:
        model: with a factorized adapter, not merged.
        rank: r' of the plain LoRA; smaller where a layer is.
        adapter: which one.

    Raises:
        ValueError: no layer has such an adapter, it has biases of its own (`lora_bias`), or rank < 1.
    """
    layers = {
        name: layer
        for name, layer in model.get_base_model().named_modules()
        if isinstance(layer, FactorizedLoraLayer) and layer.ours(adapter)
    }
    if rank < 1 or not layers:
        raise ValueError(
            f"rank {rank}: take at least 1" if layers else f"no layer has a factorized adapter {adapter}"
        )
    ours: Any = model.peft_config[adapter]
    if ours.lora_bias:
        raise ValueError("an adapter with lora_bias is no update of the weight alone: no plain LoRA has its biases")
    state: dict[str, Tensor] = {}
    kept = total = 0.0
    for name, layer in layers.items():
        delta = layer.exact(adapter) - wide(layer.base_matrix())
        left, singular, right = _svd(delta, min(rank, *delta.shape))
        kept, total = kept + float(singular.square().sum()), total + float(delta.square().sum())
        root = singular.sqrt()
        b, a = _padded(left * root, rank), _padded(right * root, rank).t()
        if isinstance(layer, FactorizedLoraEmbedding):  # its matrix is [tokens, features], PEFT's B·A transposed
            state |= {f"base_model.model.{name}.lora_embedding_A": b.t().contiguous()}
            state |= {f"base_model.model.{name}.lora_embedding_B": a.t().contiguous()}
        else:
            state |= {f"base_model.model.{name}.lora_A.weight": a.contiguous()}
            state |= {f"base_model.model.{name}.lora_B.weight": b.contiguous()}
    others = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    state |= {key: value.cpu() for key, value in others.items() if ".lora_" not in key}  # modules trained whole
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(layers),
        modules_to_save=ours.modules_to_save,
        trainable_token_indices=ours.trainable_token_indices,
        fan_in_fan_out=ours.fan_in_fan_out,
        task_type=ours.task_type,
        base_model_name_or_path=ours.base_model_name_or_path,
        inference_mode=True,
    )
    return PlainLora(config, state, kept / total if total else 1.0)


def _svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first singular triplets: [m, rank], [rank], [n, rank], on the CPU."""
    if min(matrix.shape) <= EXACT_UP_TO:
        left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
        right = right.t()
    else:
        left, singular, right = torch.svd_lowrank(matrix, q=min(rank + 16, *matrix.shape), niter=6)
    return left[:, :rank].cpu(), singular[:rank].cpu(), right[:, :rank].cpu()


def _padded(matrix: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, rank - matrix.shape[1]))
