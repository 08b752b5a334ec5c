"""Tiny pretrained models as folders, for the tasks on language models."""

import torch
from tokens import CHATML, byte_level, paired


def write_llama(folder, seed=0, tie=False, chat=True, tokens=None, config=None, model=None, **sizes):
    """A random Llama, or one of its kin, of two blocks with a byte-level tokenizer; returns the folder's name."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level(CHATML if chat else None)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, **sizes}
    made = (config or LlamaConfig)(
        vocab_size=tokens or len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )
    torch.manual_seed(seed)
    (model or LlamaForCausalLM)(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_bert(folder, seed=0, whole=True):
    """A random BERT of two blocks (`whole`: with its pooler) with a tokenizer of pairs; returns the folder's name."""
    from transformers import BertConfig, BertModel

    tokenizer = paired()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    BertModel(config, add_pooling_layer=whole).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
