"""`sinelr generate`: text from a language model."""

import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sinelr_lightning.errors import UserError, first_line

if TYPE_CHECKING:
    from sinelr_lightning.tasks.causal import CausalTask

__all__ = ["generate"]


def generate(
    prompt: str,
    ckpt_path: str = "last",
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    adapter: bool = True,
    device: str = "auto",
) -> None:
    """Write how a language model with its adapter goes on from a prompt, as it is made.

    The prompt is put into the form of the training data: a question to be answered where it trained on answers, a
    beginning where it trained on plain text.

    Args:
        prompt: The instruction or the beginning of a text; - reads it from standard input.
        ckpt_path: A checkpoint, a run folder, or last or best for the newest run.
        max_new_tokens: Longest answer, in tokens.
        temperature: Of the draws; 0 takes the likeliest token each time.
        top_p: Draw among the likeliest tokens that make up this probability.
        repetition_penalty: Above 1 makes tokens that were there before less likely.
        seed: Of the draws.
        adapter: Use it; false asks the base model, to compare.
        device: Where to run: auto, cpu, cuda, cuda:1 …
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature < 0 or repetition_penalty <= 0:
        raise UserError("temperature must be at least 0, and repetition_penalty above 0")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed must be a whole number from 0 to 2^64 − 1, got {seed}")
    from sinelr_lightning.commands.loading import load
    from sinelr_lightning.tasks.causal import CausalTask

    if prompt == "-":
        try:
            prompt = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise UserError(f"the prompt on standard input is not {error.encoding}") from error
    if not prompt.strip():
        raise UserError("the prompt is empty")
    task = load(ckpt_path, CausalTask, device)
    draws: dict[str, Any] = {"do_sample": False}
    if temperature:  # of all tokens: what is not set here would come from the model, or be 50
        draws = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    _stream(
        task, prompt, adapter, seed, max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty, **draws
    )


def _stream(task: "CausalTask", prompt: str, adapter: bool, seed: int, **options: Any) -> None:
    import torch
    from transformers import GenerationConfig, TextStreamer

    tokens = task.prompt(prompt).to(task.device)
    if not adapter and not hasattr(task.network, "disable_adapter"):
        raise UserError(f"a {type(task).__name__} has no adapter to do without")
    if task.positions is not None:
        if tokens.shape[1] >= task.positions:
            raise UserError(f"the prompt has {tokens.shape[1]} tokens, the model reads {task.positions}")
        options["max_new_tokens"] = min(options["max_new_tokens"], task.positions - tokens.shape[1])
    torch.manual_seed(seed)
    config = GenerationConfig(
        eos_token_id=task.end_tokens(), pad_token_id=task.network.config.pad_token_id, **options
    )
    streamer = TextStreamer(task.tokenizer, skip_prompt=True, skip_special_tokens=True)
    try:
        with torch.inference_mode(), nullcontext() if adapter else task.network.disable_adapter():
            task.network.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=config,
                streamer=streamer,
            )
    except BrokenPipeError:  # who reads has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
    except UnicodeEncodeError as error:
        letters = error.object[error.start : error.end]
        raise UserError(
            f"the output's encoding, {error.encoding}, cannot write {letters!r}: set PYTHONIOENCODING=utf-8"
        ) from error
    except ValueError as error:
        raise UserError(f"the model cannot go on: {first_line(error)}") from error
