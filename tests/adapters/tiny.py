"""Tiny models with random weights, the same at each call, and adapters that differ from their start."""

import copy
import functools
import math

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from peft import LoraConfig  # noqa: E402

from sinelr_lightning.adapters import FactorizedLoraConfig, SineLoraConfig  # noqa: E402

VOCABULARY, WIDTH = 64, 32
IDS = torch.arange(4 * 9).reshape(4, 9) * 11 % VOCABULARY
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@functools.cache
def _built(name: str, tied: bool) -> nn.Module:
    torch.manual_seed(1)
    if name == "llama":
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            tie_word_embeddings=tied,
        )
        return transformers.LlamaForCausalLM(config).eval()
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=32)
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config).eval()


def llama(tied: bool = False) -> nn.Module:
    return copy.deepcopy(_built("llama", tied))


def gpt2() -> nn.Module:
    return copy.deepcopy(_built("gpt2", True))


def bert() -> nn.Module:
    return copy.deepcopy(_built("bert", False))


def sine(**changes) -> SineLoraConfig:
    """A sine of rank 4 on every linear layer of the Llama, away from its start; phases of a few rad."""
    given = {"r": 4, "target_modules": ALL, "init_lora_weights": False, "frequency": 40.0, "gain": 20.0}
    return SineLoraConfig(**given | changes)


def plain(**changes) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ALL, "init_lora_weights": False} | changes)


def shuffled(**changes) -> FactorizedLoraConfig:
    """A family whose factors are not U and V; see `layers.families`."""
    import layers.families  # noqa: F401

    given = {"r": 3, "target_modules": ALL, "init_lora_weights": False, "factorization": "ShuffledLowRank"}
    return FactorizedLoraConfig(**given | changes)


def logits(model: nn.Module, ids: Tensor = IDS, **more) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def away(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors."""
    return (a.double() - b.double()).abs().max().item()


def learn(model: nn.Module, steps: int = 3, ids: Tensor = IDS) -> nn.Module:
    """A few steps of training on the first token's logit, whatever the model; back in evaluation."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        model(input_ids=ids).logits.float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def sine_update(a: Tensor, b: Tensor, config: SineLoraConfig) -> Tensor:
    """s·sin(ω·B·A)/g of PEFT's own factors in float64, by the book."""
    n = a.flatten(1).shape[1]
    omega = 6 * math.sqrt(n) if config.frequency == "auto" else config.frequency
    gain = math.sqrt(n) if config.gain is None else config.gain
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    return scale * torch.sin(omega * b.double().flatten(1) @ a.double().flatten(1)) / gain
