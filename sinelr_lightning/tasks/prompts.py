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
        batch: one sample a row, padded at the right, with `indices`; rows of one sample stand next to each other.

    Returns:
        `input_ids`, `labels` and `position_ids` of the rest of the rows [B, C]; and what the model takes beside them:
        the cache that holds the prompt of each row, and the `attention_mask` of prompts and rest [B, P + C]. The
        batch as it is, and nothing, where each sample has one row, some begin with nothing in common, the model
        keeps other things than keys and values of each token, or processes share its weights out, which have to run
        it equally often.
    """
    ids, labels, lengths = batch["input_ids"], batch["labels"], (batch["segments"] > 0).sum(1)
    _, sample, rows = torch.unique_consecutive(batch["indices"], return_inverse=True, return_counts=True)
    if len(rows) == len(ids):
        return batch, {}
    first = rows.cumsum(0) - rows
    ends = (ids != ids[first][sample]) | (labels != UNTRAINED)
    shared = (ends.cumsum(1) == 0).sum(1)  # tokens that a row begins with as the first of its sample does
    read = torch.full_like(rows, ids.shape[1]).scatter_reduce(0, sample, shared, "amin") - 1
    known, cache = _cache(network)
    if cache is None or int(read.min()) < 1:
        return batch, {}
    # Padded at the left, so that nothing lies between prompt and answer: a sliding window counts what does.
    prompts, mask, positions = _columns(ids[first], read - int(read.max()), read, int(read.max()))
    told = {"cache" if "cache" in known else "past_key_values": cache, "use_cache": True}
    few = {"logits_to_keep": 1} if "logits_to_keep" in known else {}  # none of them is looked at
    network(input_ids=prompts, attention_mask=mask, position_ids=positions, **told, **few)
    cache.batch_select_indices(sample)
    begin = read[sample]
    answers, marks, positions = _columns(ids, begin, lengths, int((lengths - begin).max()))
    after = labels.gather(1, positions).masked_fill(marks == 0, UNTRAINED)
    rest = {"input_ids": answers, "labels": after, "position_ids": positions}
    return rest, {"attention_mask": torch.cat([mask[sample], marks], 1), **told}


def _cache(network: Any) -> tuple[Collection[str], Any]:
    """The arguments that the model takes, and a cache of keys and values, or None where it can have none here."""
    from torch.distributed.fsdp import FSDPModule
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    model = network.get_base_model() if hasattr(network, "get_base_model") else network
    known = inspect.signature(model.forward).parameters
    cache = DynamicCache(config=model.config)
    tokens = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    takes = not known.keys().isdisjoint(("cache", "past_key_values")) and not isinstance(model, FSDPModule)
    return known, cache if tokens and takes else None


def _columns(ids: Tensor, begin: Tensor, end: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """`size` columns of each row from its `begin` on, which may lie before it: ids, mask, positions."""
    columns = begin[:, None] + torch.arange(size, device=ids.device)
    mask = ((columns >= 0) & (columns < end[:, None])).long()
    positions = columns.clamp(0, ids.shape[1] - 1)
    return ids.gather(1, positions), mask, positions
