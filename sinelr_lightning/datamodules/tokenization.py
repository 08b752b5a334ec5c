"""From records and documents to token ids and labels: what a language model reads, and what of it is trained.

A tokenizer is a fast one of Hugging Face, handed in by the caller; nothing here imports `transformers`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Literal

import numpy as np

from sinelr_lightning.datamodules.text_records import Document, Record
from sinelr_lightning.errors import UserError, first_line

__all__ = [
    "UNTRAINED",
    "Form",
    "Group",
    "Sample",
    "Template",
    "bos_before_text",
    "choose_template",
    "prompt_text",
    "show_samples",
    "text_rows",
    "tokenize_records",
]

Template = Literal["auto", "chat", "alpaca"]
Form = Literal["text", "chat", "alpaca"]  # what a text is written in, once it is known

UNTRAINED = -100  # the label that cross entropy passes over
CHUNK = 1000  # texts handed to the tokenizer at a time: it works on them in parallel
PLACE = "\u27e8the answer\u27e9"  # stands for an answer while its end in the rendered text is looked for

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Sample:
    """A tokenised text.

    Attributes:
        where: `file:line` of its record.
        ids: int32 [T].
        labels: int32 [T], the id itself on trained tokens, −100 elsewhere; not shifted.
        choice: number of the choice that it ends with, −1 without choices.
        answer: number of the right choice, −1 without choices.
    """

    where: str
    ids: np.ndarray
    labels: np.ndarray
    choice: int = -1
    answer: int = -1

    @property
    def trained(self) -> int:
        """Number of tokens that are predicted and trained; the first has nothing before it to be predicted from."""
        return int((self.labels[1:] != UNTRAINED).sum())


Group = list[Sample]
"""What belongs to one record: a sample, or one for each choice."""


@dataclass(frozen=True)
class _Rendered:
    """A text before it is tokenised; `answers` are [begin, end) in characters, what ends a turn not included."""

    where: str
    text: str
    answers: list[tuple[int, int]]
    choice: int = -1
    answer: int = -1


def choose_template(tokenizer: Any, template: Template) -> Literal["chat", "alpaca"]:
    """Resolve "auto": "chat" where the tokenizer has a chat template, else "alpaca".

    Raises:
        UserError: "chat", and there is none.
    """
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has_chat:
        raise UserError("data.template is chat, but the tokenizer has no chat template; take alpaca")
    if template == "auto":
        return "chat" if has_chat else "alpaca"
    return template


def prompt_text(tokenizer: Any, template: Literal["chat", "alpaca"], record: Record) -> str:
    """Write what stands before the answer: what a model is given to go on from.

    Raises:
        UserError: a conversation, which alpaca has no form for; or one that the chat template refuses.
    """
    if template == "chat":
        return _render(tokenizer, _conversation(record), record.where, prompt=True)
    if record.messages:
        raise UserError(
            f'{record.where}: "messages" need the chat template of a tokenizer; take a tokenizer that has one, or '
            'records with "instruction" and "output"'
        )
    form = ALPACA_INPUT if record.input else ALPACA
    return form.format(instruction=record.instruction, input=record.input)


def tokenize_records(
    records: Sequence[Record], tokenizer: Any, template: Literal["chat", "alpaca"], choices: bool = False
) -> list[Group]:
    """Write each record in the template's form and tokenise it; the labels are on the assistant's answers alone.

    An answer's labels begin with the first token that holds one of its characters and include the special token that
    ends the turn, which stops generation. Where the template ends the last answer without such a token, the
    tokenizer's EOS is put after it. What follows the last trained token is left out.

    The chat template writes a BOS token or not, as it says; before an alpaca prompt stands one if the tokenizer puts
    it before any text.

    Args:
        records: what was read.
        tokenizer: a fast one.
        template: how to write them.
        choices: whether each choice of a record becomes a sample; else only the right one does.

    Raises:
        UserError: with file and line: a conversation that the template refuses or has no form for; a template that
            writes the beginning of a conversation otherwise when more follows; a tokenizer without EOS.
    """
    rendered: list[_Rendered] = []
    sizes = []
    for record in records:
        written = list(_written(record, tokenizer, template, choices))
        rendered += written
        sizes.append(len(written))
    make = _Maker(tokenizer, before=[] if template == "chat" else bos_before_text(tokenizer))
    samples = map(make, rendered, _encoded(tokenizer, [item.text for item in rendered]))
    return [list(islice(samples, size)) for size in sizes]


def text_rows(documents: Sequence[Document], tokenizer: Any, max_length: int, rest: bool) -> list[Group]:
    """Tokenise documents, each with EOS at its end, one after the other, and cut them into rows that are all trained.

    Before each stands a BOS token if the tokenizer puts it before any text.

    Args:
        documents: (name, text).
        tokenizer: a fast one.
        max_length: tokens a row.
        rest: whether a last, shorter row is kept.

    Raises:
        UserError: the text does not fill a row, or has a single token; a tokenizer without EOS.
    """
    before, after = bos_before_text(tokenizer), [_eos(tokenizer)]
    pieces = [[*before, *ids, *after] for ids, _ in _encoded(tokenizer, [text for _, text in documents])]
    ids = np.array([number for piece in pieces for number in piece], dtype=np.int32)
    starts = np.cumsum([0, *map(len, pieces)])
    least = 2 if rest else max_length
    rows = []
    for begin in range(0, len(ids) - least + 1, max_length):
        row = ids[begin : begin + max_length]
        name = documents[int(np.searchsorted(starts, begin, side="right")) - 1][0]
        rows.append([Sample(f"{name}: tokens from {begin} on", row, row)])
    if not rows:
        raise UserError(
            f"{documents[0][0]}: the text has {len(ids)} tokens, fewer than a row of data.max_length = {max_length}; "
            "lower it, or take more text"
        )
    return rows


def show_samples(samples: Sequence[Sample], tokenizer: Any) -> None:
    """Print samples on stderr: trained tokens green, the others dim; without colours, the trained ones in ⟦ ⟧."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    marks = ("⟦", "⟧") if console.color_system is None else ("", "")
    for sample in samples:
        shown = Text(f"{sample.where}: {len(sample.ids)} tokens, {sample.trained} of them trained\n")
        pairs = zip(sample.ids.tolist(), (sample.labels != UNTRAINED).tolist(), strict=True)
        for trained, run in groupby(pairs, key=lambda pair: pair[1]):
            text = tokenizer.decode([number for number, _ in run])
            shown.append(f"{marks[0]}{text}{marks[1]}" if trained else text, style="green" if trained else "dim")
        console.print(shown)


def _conversation(record: Record) -> list[dict[str, str]]:
    if record.messages:
        return list(record.messages)
    asked = f"{record.instruction}\n\n{record.input}" if record.input else record.instruction
    return [{"role": "user", "content": asked}]


def _written(record: Record, tokenizer: Any, template: str, choices: bool) -> Iterator[_Rendered]:
    """The record with its answer, or with each of its choices."""
    if not choices or not record.choices:
        yield _Rendered(record.where, *_answered(record, record.output, tokenizer, template))
        return
    for choice, output in enumerate(record.choices):
        text, answers = _answered(record, output, tokenizer, template)
        yield _Rendered(record.where, text, answers[-1:], choice, record.answer)


def _answered(record: Record, output: str, tokenizer: Any, template: str) -> tuple[str, list[tuple[int, int]]]:
    """The text with `output` as its last answer, and where the answers are in it."""
    if template == "chat":
        return _chat(tokenizer, _conversation(record), output, record.where)
    prompt = prompt_text(tokenizer, "alpaca", record)
    return prompt + output, [(len(prompt), len(prompt + output))]


def _chat(tokenizer: Any, before: list[dict[str, str]], output: str, where: str) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as the template writes it, and where the assistant's answers are in it.

    An answer begins where the generation prompt before it ends, so that what the template writes first in an answer
    is learned as well, and ends where the rest of the conversation begins.
    """
    messages = [*before, {"role": "assistant", "content": output}]
    text = _render(tokenizer, messages, where)
    answers = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:number], where, prompt=True)
        marked = [*messages[:number], {**message, "content": PLACE}, *messages[number + 1 :]]
        after = _render(tokenizer, marked, where).rpartition(PLACE)[2]
        end = len(text) - len(after)
        if not text.startswith(prompt) or not text.endswith(after) or end <= len(prompt):
            raise UserError(
                f"{where}: the tokenizer's chat template writes what stands around answer {len(answers) + 1} "
                "otherwise when more follows, so the answer cannot be found in it; take records with one answer, "
                "another tokenizer, or data.template alpaca"
            )
        answers.append((len(prompt), end))
    return text, answers


def _render(tokenizer: Any, messages: list[dict[str, str]], where: str, prompt: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template is a program of somebody else's, and raises what it likes
        raise UserError(f"{where}: the tokenizer's chat template refuses it: {first_line(error)}") from error


def _encoded(tokenizer: Any, texts: list[str]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Ids and offsets [T, 2] in characters of each text. (`verbose`: long texts are no reason for a warning here.)"""
    for begin in range(0, len(texts), CHUNK):
        made = tokenizer(
            texts[begin : begin + CHUNK], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for ids, offsets in zip(made["input_ids"], made["offset_mapping"], strict=True):
            yield ids, np.array(offsets, dtype=np.int64).reshape(-1, 2)


class _Maker:
    """Puts the labels on the tokens of an answer, and on what ends it."""

    def __init__(self, tokenizer: Any, before: list[int]) -> None:
        self.before, self.eos = before, _eos(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special = [self.eos, *(number for number, token in added.items() if token.special)]

    def __call__(self, item: _Rendered, encoded: tuple[list[int], np.ndarray]) -> Sample:
        ids, offsets = encoded
        # The two ends of a token of mere white space, which some tokenizers trim, may be exchanged.
        begin, end = offsets.min(1), offsets.max(1)
        tokens = np.array(ids, dtype=np.int32)
        labels = np.full_like(tokens, UNTRAINED)
        special = np.isin(tokens, self.special)
        last, stops = 0, False
        for first, stop in item.answers:
            (inside,) = np.nonzero((end > first) & (begin < stop))
            if not len(inside):
                raise UserError(
                    f"{item.where}: the tokenizer makes no token of {item.text[first:stop]!r}; take another"
                )
            last = int(inside[-1])
            (ends,) = np.nonzero(special & (begin >= stop))
            stops = bool(len(ends)) and not item.text[stop : begin[ends[0]]].strip()
            last = int(ends[0]) if stops else last
            labels[inside[0] : last + 1] = tokens[inside[0] : last + 1]
        closing = [] if stops else [self.eos]
        ids = [*self.before, *tokens[: last + 1], *closing]
        marked = [*[UNTRAINED] * len(self.before), *labels[: last + 1], *closing]
        return Sample(item.where, np.array(ids, np.int32), np.array(marked, np.int32), item.choice, item.answer)


def _eos(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, which ends every text; take one with eos_token")
    return tokenizer.eos_token_id


def bos_before_text(tokenizer: Any) -> list[int]:
    """The BOS token if the tokenizer puts one before any text, else nothing."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
