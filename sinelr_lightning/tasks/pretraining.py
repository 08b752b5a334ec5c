"""Language models from scratch: small Llamas on the bytes of a text."""

import math
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable

from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import Dense, LinearFactory, SineLowRank, convert
from sinelr_lightning.tasks.causal import CausalTask
from sinelr_lightning.tasks.pretrained import byte_tokenizer, need_language_packages
from sinelr_lightning.tasks.schedule import Schedule

__all__ = ["PretrainingTask"]


class PretrainingTask(CausalTask):
    """Trains a Llama from random weights on bytes, its linear layers made by `linear`; the embedding is tied.

    Figures are `loss` (nats a byte), `ppl` (its exponential) and `bits` (bits a byte), as of plain text.

    Args:
        linear: factory of the layers of attention and feed-forward; Dense leaves transformers' own.
        width, depth, heads: of the transformer; the feed-forward layers have 8/3 of the width, rounded up to 32.
        context: bytes that it reads at most.
        optimizer, schedule, weight_decay: as in `Task`.

    Raises:
        UserError: transformers is missing, sizes that do not fit, or a rank that fits no layer.
    """

    monitor: ClassVar[str] = "val/bits"

    def __init__(
        self,
        linear: LinearFactory = SineLowRank(rank=16),  # noqa: B008 (frozen)
        width: int = 192,
        depth: int = 4,
        heads: int = 4,
        context: int = 512,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        schedule: Schedule = Schedule("cosine", warmup=50, final=0.1),  # noqa: B008 (frozen)
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(optimizer, schedule, weight_decay)
        for name, value in (("width", width), ("depth", depth), ("heads", heads)):
            if value < 1:
                raise UserError(f"model.{name} must be at least 1, got {value}")
        if width % (2 * heads):
            raise UserError(f"model.width must be a multiple of 2·heads = {2 * heads}, got {width}")
        if context < 2:
            raise UserError(f"model.context must be at least 2 bytes, got {context}")
        need_language_packages()
        from transformers import LlamaConfig, LlamaForCausalLM

        self.tokenizer = byte_tokenizer()
        self.network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=width,
                intermediate_size=32 * math.ceil(width / 12),
                num_hidden_layers=depth,
                num_attention_heads=heads,
                max_position_embeddings=context,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        if not isinstance(linear, Dense):
            try:
                convert(self.network, linear, exclude=["lm_head"])
            except ValueError as error:
                raise UserError(f"model.linear: {error}") from error

    @property
    def called(self) -> str:
        """The model in words."""
        return "the Llama"

    def combine(self, samples: dict[int, dict[str, float]]) -> dict[str, float]:
        """Besides the figures of `CausalTask`, bits a byte."""
        figures = super().combine(samples)
        return {**figures, "bits": figures["loss"] / math.log(2)}

    def protocol(self) -> dict[str, Any]:
        """How the data were read; a token is a byte."""
        return {**super().protocol(), "tokens": "bytes"}
