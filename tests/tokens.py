"""Tiny fast tokenizers, trained on the spot; needs transformers and tokenizers."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]"]
LINES = [
    "the correct answer is true",
    "the correct answer is false",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: ### Input: ### Response: system user assistant",
    "Please answer the following question with yes or no",
]


def byte_level(chat=None, bos=False, pad="<pad>", eos=None, trim_offsets=False):
    """Byte-level BPE: every text can be written, and decodes to itself.

    With `bos` it puts <bos> before any text. EOS is <eos>, or <|im_end|> with a chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core = _trained(core, pre_tokenizers.ByteLevel.alphabet())
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    if bos:
        core.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    return _wrapped(core, chat, eos, pad_token=pad, bos_token="<bos>")


def metaspace(chat=None):
    """BPE in the manner of SentencePiece: a word's token begins with the space before it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    return _wrapped(_trained(core, [chr(number) for number in [10, *range(32, 127)]]), chat, pad_token="<pad>")


def paired():
    """Like BERT's: [CLS] first [SEP] second [SEP], with token types 0 and 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core = _trained(core, pre_tokenizers.ByteLevel.alphabet())
    core.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 5), ("[SEP]", 6)]
    )
    return _wrapped(core, pad_token="<pad>", model_input_names=["input_ids", "token_type_ids"])


def trained_text(tokenizer, sample):
    """The trained tokens of a sample as text, one piece for each stretch of them."""
    pieces, open_ = [], False
    for number, label in zip(sample.ids.tolist(), sample.labels.tolist(), strict=True):
        assert label in (number, -100)
        if label != -100:
            pieces = [*pieces[:-1], [*pieces[-1], number]] if open_ else [*pieces, [number]]
        open_ = label != -100
    return [tokenizer.decode(piece) for piece in pieces]


def _trained(core, alphabet):
    from tokenizers import trainers

    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(LINES, trainer)
    return core


def _wrapped(core, chat=None, eos=None, **tokens):
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos or ("<|im_end|>" if chat else "<eos>"), **tokens
    )
    made.chat_template = chat
    return made
