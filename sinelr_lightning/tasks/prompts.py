"""Several answers to one prompt: the prompt is read once, and each answer goes on from there."""

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from sinelr_lightning.datamodules.packing import Batch
from sinelr_lightning.datamodules.tokenization import UNTRAINED

__all__ = ["answers_after_prompts"]


def answers_after_prompts(network: Any, batch: Batch) -> tuple[Batch, dict[str, Any]]:
    """Read what the rows of each sample begin with, once; give the rows from there on, and what to tell the model.

    Their first token is the last of the prompt, from which the first of the answer is predicted.

    Args:
        network: a causal language model of transformers, or one of PEFT.
        batch: not packed, padded at the right, with `indices`; the rows of a sample, one for each of its answers,
            stand next to each other.

    Returns:
        `input_ids`, `labels` and `position_ids` of the rest of the rows, [B, C] with C of the longest; and what the
        model takes beside them: the cache that holds the prompt of each row, and the `attention_mask`, [B, P + C]
        with P of the longest prompt. The batch as it is, and nothing, where each sample has one row, some begin with
        nothing in common, or the model cannot go on from a prompt (`_goes_on`).
    """
    ids, labels, lengths = batch["input_ids"], batch["labels"], (batch["segments"] > 0).sum(1)
    _, sample, rows = torch.unique_consecutive(batch["indices"], return_inverse=True, return_counts=True)
    if len(rows) == len(ids):
        return batch, {}
    model = network.get_base_model() if hasattr(network, "get_base_model") else network
    known = inspect.signature(model.forward).parameters
    if not _goes_on(model, known):
        return batch, {}
    first = rows.cumsum(0) - rows
    ends = (ids != ids[first][sample]) | (labels != UNTRAINED)
    shared = (ends.cumsum(1) == 0).sum(1)  # tokens that a row begins with as the first of its sample does
    read = torch.full_like(rows, ids.shape[1]).scatter_reduce(0, sample, shared, "amin") - 1
    if int(read.min()) < 1:
        return batch, {}
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    told = {"cache" if "cache" in known else "past_key_values": cache, "use_cache": True}
    few = {"logits_to_keep": 1} if "logits_to_keep" in known else {}  # none of them is looked at
    # Padded at the left, so that nothing lies between prompt and answer: a sliding window counts what does.
    prompts, mask, positions = _columns(ids[first], read - int(read.max()), read, int(read.max()))
    network(input_ids=prompts, attention_mask=mask, position_ids=positions, **told, **few)
    cache.batch_select_indices(sample)
    begin = read[sample]
    answers, marks, positions = _columns(ids, begin, lengths, int((lengths - begin).max()))
    after = labels.gather(1, positions).masked_fill(marks == 0, UNTRAINED)
    rest = {"input_ids": answers, "labels": after, "position_ids": positions}
    return rest, {"attention_mask": torch.cat([mask[sample], marks], 1), **told}


def _goes_on(model: Any, known: Collection[str]) -> bool:
    """Whether a model gives the same from a prompt's keys and values on as from the whole row.

    It must use transformers' own attention and masks and take positions; keep nothing but keys and values; turn them
    by frequencies that do not depend on the row's length; and not be shared out over processes (FSDP2), which have
    to run it equally often.

    Args:
        model: of transformers.
        known: names of the arguments that it takes.
    """
    from torch.distributed.fsdp import FSDPModule

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    turned = str(getattr(config, "rope_parameters", None))  # of all layers, or of each kind of layer
    return (
        getattr(model, "_supports_attention_backend", False)
        and "position_ids" in known
        and not getattr(model, "_is_stateful", False)
        and kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
        and not any(kind in turned for kind in ("longrope", "dynamic"))
        and not any(isinstance(module, FSDPModule) for module in model.modules())
    )


def _columns(ids: Tensor, begin: Tensor, end: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """`size` columns of each row from its `begin` on, which may lie before it: ids, mask, positions."""
    columns = begin[:, None] + torch.arange(size, device=ids.device)
    mask = ((columns >= 0) & (columns < end[:, None])).long()
    positions = columns.clamp(0, ids.shape[1] - 1)
    return ids.gather(1, positions), mask, positions
