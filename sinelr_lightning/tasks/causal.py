"""Causal language models, whatever their weights are: loss on text, perplexity, the choice among given answers."""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sinelr_lightning.datamodules.language import LanguageData
from sinelr_lightning.datamodules.text_records import Record
from sinelr_lightning.datamodules.tokenization import UNTRAINED, Form, bos_before_text, prompt_text, tokenize_records
from sinelr_lightning.errors import UserError
from sinelr_lightning.tasks.prompts import answers_after_prompts
from sinelr_lightning.tasks.segments import needs_mask, segment_mask
from sinelr_lightning.tasks.text import TextTask

__all__ = ["CausalTask"]


class CausalTask(TextTask):
    """Base of the tasks on causal language models.

    Figures are `loss` (nats a marked token), `ppl` (its exponential) and, where the data has answers to choose from,
    `acc`: the share of samples whose right answer has the largest log-likelihood, summed over its tokens.
    """

    form: Form = "text"  # in which the data puts what is asked
    masks_segments = True  # whether packed samples need a mask of ours

    @property
    @abstractmethod
    def called(self) -> str:
        """What messages call the model."""

    def setup(self, stage: str) -> None:
        """Have the data cut into tokens, and note in which form it puts what is asked."""
        data = self.data(LanguageData)
        self.read(data)
        self.form = data.form

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the form of what is asked."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["form"] = self.form

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the form back."""
        super().on_load_checkpoint(checkpoint)
        self.form = checkpoint["form"]

    def end_tokens(self) -> list[int]:
        """Tokens at which an answer ends: that of the training data, and those of the tokenizer and the model."""
        told = self.network.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])} - {None}
        if self.form != "text":
            record = Record("an example", output="a", instruction="a")
            ends.add(int(tokenize_records([record], self.tokenizer, self.form)[0][0].ids[-1]))
        return sorted(ends)

    def prompt(self, text: str) -> Tensor:
        """Tokens [1, T] of what the model reads when it is asked `text`, in the form of the data it trained on."""
        before = [] if self.form == "chat" else bos_before_text(self.tokenizer)  # a chat template writes its own
        if self.form != "text":
            text = prompt_text(self.tokenizer, self.form, Record("the prompt", output="", instruction=text))
        return torch.tensor([before + self.tokenizer(text, add_special_tokens=False)["input_ids"]])

    # -- training and evaluation -------------------------------------------------------------------------------------
    def forward(self, batch: dict[str, Tensor], prompts: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Loss of each marked token, in nats [K], and which are marked: bool [B, T − 1], from the second token on.

        Args:
            batch: of the data, or what is left of it after `prompts`.
            prompts: what the model is told of those, see `answers_after_prompts`.
        """
        labels = batch["labels"][:, 1:]
        marked = labels != UNTRAINED
        told = prompts or {"attention_mask": self._attention(batch["segments"]), "use_cache": False}
        output = self.network(input_ids=batch["input_ids"], position_ids=batch["position_ids"], **told)
        logits = output.logits[:, :-1][marked]  # no softmax where nothing is trained
        return F.cross_entropy(logits.float(), labels[marked], reduction="none"), marked

    def _attention(self, segments: Tensor) -> Tensor | None:
        """The mask that has each sample of a row read itself alone; None where the positions say it.

        Whole rows of one sample need none, and padding one [B, T].
        """
        if bool((segments == segments[:, :1]).all()):
            return None
        if int(segments.max()) <= 1:
            return (segments > 0).long()
        return segment_mask(segments, self.network) if self.masks_segments else None

    def on_fit_start(self) -> None:
        """Find the way in which the model keeps packed samples apart.

        Raises:
            UserError: it has none.
        """
        super().on_fit_start()
        if self.data(LanguageData).packing and self.form != "text":  # a row of plain text is one sample
            self.masks_segments = needs_mask(self.network, self.called)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over the marked tokens of the batch, of which each process may hold another number."""
        losses, _ = self(batch)
        count = torch.tensor(float(len(losses)), device=losses.device)
        world = self._trainer.world_size if self._trainer else 1
        if world > 1:
            torch.distributed.all_reduce(count)
        return losses.sum() * (world / count)  # the gradients are averaged over the processes

    def score_samples(self, batch: dict[str, Tensor], stage: str) -> None:
        """Note loss and guess of each sample."""
        losses, marked = self(*answers_after_prompts(self.network, batch))
        rows = marked.nonzero()[:, 0]
        sums = torch.zeros(len(marked), dtype=torch.float64, device=losses.device).index_add(0, rows, losses.double())
        table = torch.stack([batch["indices"], batch["choice"], batch["answer"], marked.sum(1)], 1).tolist()
        samples: dict[int, list[tuple[int, int, int, float]]] = {}
        for (number, choice, answer, tokens), loss in zip(table, sums.tolist(), strict=True):
            samples.setdefault(number, []).append((choice, answer, tokens, loss))
        for number, choices in samples.items():
            _, answer, tokens, loss = next(row for row in choices if row[0] == row[1])
            right = {"correct": _correct(answer, {row[0]: row[3] for row in choices})} if answer >= 0 else {}
            self.score(stage, number, loss=loss, tokens=tokens, **right)

    def combine(self, samples: dict[int, dict[str, float]]) -> dict[str, float]:
        """Loss a token, perplexity, and accuracy of the choices, over all samples, each counted once."""
        if not samples:
            raise UserError("the evaluation has no sample")
        loss = math.fsum(s["loss"] for s in samples.values()) / math.fsum(s["tokens"] for s in samples.values())
        correct = [s["correct"] for s in samples.values() if "correct" in s]
        accuracy = {"acc": math.fsum(correct) / len(correct)} if correct else {}
        return {"loss": loss, "ppl": math.exp(min(loss, 700.0)), **accuracy}

    def details(self, stage: str) -> dict[str, Any]:
        """The number of samples and of the tokens that count."""
        samples = self.scores.get(stage, {})
        return {"samples": len(samples), "tokens": int(sum(s["tokens"] for s in samples.values()))}

    # -- what is said about the run ----------------------------------------------------------------------------------
    def protocol(self) -> dict[str, Any]:
        """How the data were read."""
        return {**super().protocol(), **self.data(LanguageData).protocol()}

    def closing_lines(self, run: Path) -> list[str]:
        """A command that has the model write."""
        return [f'sinelr generate --ckpt_path {run} --prompt "…"', *super().closing_lines(run)]


def _correct(answer: int, losses: dict[int, float]) -> float:
    """1 if the answer has the smallest loss, its share of the first place in a tie, 0 where a loss is no number."""
    if not all(math.isfinite(loss) for loss in losses.values()):
        return 0.0
    first = [choice for choice, loss in losses.items() if loss == min(losses.values())]
    return (answer in first) / len(first)
