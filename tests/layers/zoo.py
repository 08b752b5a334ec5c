"""One small model of each family that people convert, with an input that it takes: random weights, no download."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        make: builds one.
        inputs: keyword arguments of its forward; under "" one that has no name that all share.
        read: the tensor to look at in what forward gives.
        package: that has the model.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, Any]]
    read: Callable[[Any], Tensor]
    package: str


def _image(side: int, channels: int = 3) -> Callable[[], dict[str, Tensor]]:
    # Models of torchvision call their argument x or input: the first positional one.
    return lambda: {"": torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))}


def _tokens(**more: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    return lambda: {
        "input_ids": torch.arange(20).reshape(2, 10) % 50,
        **{name: make() for name, make in more.items()},
    }


def _vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(num_classes=7, **options)

    return make


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(24, 48, 1), CNBlockConfig(48, None, 1)], num_classes=7)


def _swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 24, [1, 1], [2, 4], [4, 4], num_classes=7)


def _transformer(kind: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**sizes))

    return make


TEXT = {"vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SPEECH = {
    "d_model": 48, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "vocab_size": 60,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 16,
    "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
WAVES = {
    "conv_dim": (32, 32), "conv_stride": (5, 2), "conv_kernel": (10, 3), "hidden_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "intermediate_size": 64, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "vocab_size": 40,
}  # fmt: skip


class UNet(nn.Module):
    """Two scales, with a skip and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.up, self.out = nn.ConvTranspose2d(48, 24, 2, stride=2), nn.Conv2d(48, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        return self.out(torch.cat([skip, self.up(torch.relu(self.middle(skip)))], 1))


class DiffusionTransformer(nn.Module):
    """A block of DiT (arXiv 2212.09748): the step's embedding shifts and scales what attention and MLP see."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patch, self.step = nn.Conv2d(4, width, 2, stride=2), nn.Linear(1, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, 16)

    def forward(self, latent: Tensor, step: Tensor) -> Tensor:
        x = self.patch(latent).flatten(2).mT
        shift, scale, shift_mlp, scale_mlp = self.modulation(self.step(step))[:, None].chunk(4, -1)
        seen = self.norm(x) * (1 + scale) + shift
        x = x + self.attention(seen, seen, seen, need_weights=False)[0]
        return self.head(x + self.mlp(self.norm(x) * (1 + scale_mlp) + shift_mlp))


class Reader(nn.Module):
    """An LSTM with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.LSTM(24, 32, 2, batch_first=True), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0])


def _plain(output: Any) -> Tensor:
    return output


def _logits(output: Any) -> Tensor:
    return output.logits


ZOO: dict[str, Family] = {
    "ResNet-18": Family(_vision("resnet18"), _image(32), _plain, "torchvision"),
    "ConvNeXt": Family(_convnext, _image(64), _plain, "torchvision"),
    "ViT": Family(
        _vision(
            "VisionTransformer", image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96
        ),
        _image(32),
        _plain,
        "torchvision",
    ),
    "Swin": Family(_swin, _image(32), _plain, "torchvision"),
    "U-Net": Family(UNet, _image(16), _plain, "torch"),
    "DiT": Family(
        DiffusionTransformer,
        lambda: {"latent": torch.linspace(-1, 1, 512).reshape(2, 4, 8, 8), "step": torch.tensor([[0.1], [0.9]])},
        _plain,
        "torch",
    ),
    "LSTM": Family(Reader, lambda: {"x": torch.linspace(-1, 1, 480).reshape(2, 10, 24)}, _plain, "torch"),
    "BERT": Family(
        _transformer("BertForSequenceClassification", "BertConfig", intermediate_size=96, **TEXT),
        _tokens(),
        _logits,
        "transformers",
    ),
    "GPT-2": Family(
        _transformer("GPT2LMHeadModel", "GPT2Config", n_embd=48, n_layer=2, n_head=4, vocab_size=60, n_positions=16),
        _tokens(),
        _logits,
        "transformers",
    ),
    "Llama": Family(
        _transformer("LlamaForCausalLM", "LlamaConfig", intermediate_size=96, num_key_value_heads=2, **TEXT),
        _tokens(),
        _logits,
        "transformers",
    ),
    "Mixtral": Family(
        _transformer(
            "MixtralForCausalLM", "MixtralConfig", intermediate_size=96, num_key_value_heads=2, num_local_experts=4,
            **TEXT,
        ),
        _tokens(),
        _logits,
        "transformers",
    ),
    "T5": Family(
        _transformer(
            "T5ForConditionalGeneration", "T5Config", vocab_size=60, d_model=48, d_kv=12, d_ff=96, num_layers=2,
            num_heads=4, decoder_start_token_id=0,
        ),
        _tokens(decoder_input_ids=lambda: torch.ones(2, 4, dtype=torch.int64)),
        _logits,
        "transformers",
    ),
    "Whisper": Family(
        _transformer("WhisperForConditionalGeneration", "WhisperConfig", **SPEECH),
        lambda: {
            "input_features": torch.linspace(-1, 1, 1280).reshape(2, 16, 40),
            "decoder_input_ids": torch.ones(2, 4, dtype=torch.int64),
        },
        _logits,
        "transformers",
    ),
    "wav2vec 2.0": Family(
        _transformer("Wav2Vec2ForCTC", "Wav2Vec2Config", **WAVES),
        lambda: {"input_values": torch.linspace(-1, 1, 1600).reshape(2, 800).sin()},
        _logits,
        "transformers",
    ),
}  # fmt: skip


def run(family: Family, model: nn.Module, inputs: Mapping[str, Any] | None = None) -> Tensor:
    """The model's answer to these inputs, or to the family's own."""
    inputs = dict(family.inputs() if inputs is None else inputs)
    first = inputs.pop("", None)
    return family.read(model(first, **inputs) if first is not None else model(**inputs))
