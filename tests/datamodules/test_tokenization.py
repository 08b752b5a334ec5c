import pytest
from tokens import CHATML, byte_level, metaspace, trained_text

from sinelr_lightning.datamodules.text_records import Record
from sinelr_lightning.datamodules.tokenization import (
    choose_template,
    prompt_text,
    show_samples,
    text_rows,
    tokenize_records,
)
from sinelr_lightning.errors import UserError

pytest.importorskip("transformers")

ASKED = Record("a.jsonl:3", "the answer is 4", "Add the numbers.", "2 {2}")
BARE = Record("a.jsonl:4", " Yes.\n", "Is it?")
TALK = Record(
    "a.jsonl:5",
    "so long",
    messages=(
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi  there ☃"},
        {"role": "user", "content": "assistant\nHi  there ☃"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "so long"},
    ),
)
CHOICES = Record("a.json:6", "it is b", "Which?", choices=("it is a", "it is b", "it is a long c"), answer=1)

# Templates of other families. Each is followed by what it makes of TALK's three answers.
FAMILIES = {
    "chatml": (CHATML, ["Hi  there ☃<|im_end|>", "Hi<|im_end|>", "so long<|im_end|>"]),
    # Phi: EOS after the whole conversation, which is there only where no answer is asked for.
    "eos at the end": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}",
        ["Hi  there ☃<|im_end|>", "Hi<|im_end|>", "so long<|im_end|>"],
    ),
    # Llama 2: an answer has a space before it, and EOS right after it.
    "llama": (
        "{% for m in messages %}{% if m['role'] != 'assistant' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}<eos>{% endif %}{% endfor %}",
        [" Hi  there ☃<eos>", " Hi<eos>", " so long<eos>"],
    ),
    # Qwen 3: thoughts before the last answer alone.
    "thoughts": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["Hi  there ☃<|im_end|>", "Hi<|im_end|>", "<think>\n\n</think>\n\nso long<|im_end|>"],
    ),
    # Vicuna without its EOS: nothing ends an answer, so EOS is put after the last.
    "no end": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        [" Hi  there ☃", " Hi", " so long<|im_end|>"],
    ),
    # GLM: the next turn's beginning ends an answer.
    "the next turn ends it": (
        "{% for m in messages %}{{ '<bos>' if m['role'] == 'user' else '<pad>' }}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<pad>{% endif %}",
        ["Hi  there ☃<bos>", "Hi<bos>", "so long<|im_end|>"],
    ),
}


def only(record, tokenizer, template):
    ((sample,),) = tokenize_records([record], tokenizer, template)
    return sample


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_answer_is_trained_with_what_ends_it(name, trim_offsets):
    chat, expected = FAMILIES[name]
    tokenizer = byte_level(chat, trim_offsets=trim_offsets)
    sample = only(TALK, tokenizer, "chat")
    assert trained_text(tokenizer, sample) == expected
    assert sample.labels[-1] == sample.ids[-1] and sample.trained == (sample.labels != -100).sum()
    whole = tokenizer.apply_chat_template(
        [*TALK.messages, {"role": "assistant", "content": TALK.output}], tokenize=False
    )
    assert whole.startswith(tokenizer.decode(sample.ids).removesuffix("<|im_end|>"))


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_an_alpaca_answer_and_eos(trim_offsets):
    tokenizer = byte_level(trim_offsets=trim_offsets)
    for record, header in ((ASKED, "### Instruction:\nAdd the numbers.\n\n### Input:\n2 {2}"), (BARE, "\nIs it?")):
        sample = only(record, tokenizer, "alpaca")
        assert trained_text(tokenizer, sample) == [f"{record.output}<eos>"]
        prompt = prompt_text(tokenizer, "alpaca", record)
        assert prompt.startswith("Below is an instruction that") and prompt.endswith(f"{header}\n\n### Response:\n")
        assert tokenizer.decode(sample.ids) == f"{prompt}{record.output}<eos>"
    assert sample.where == "a.jsonl:4"


def test_a_word_that_takes_the_prompts_last_space_with_it_is_trained():
    tokenizer = metaspace(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    sample = only(Record("a:1", "true or false", "Is it?"), tokenizer, "chat")
    assert trained_text(tokenizer, sample) == ["true or false<|im_end|>"]
    plain = metaspace()
    assert trained_text(plain, only(Record("a:1", "true", "Is it?"), plain, "alpaca")) == ["true<eos>"]


def test_auto_takes_the_tokenizers_template_where_there_is_one():
    assert choose_template(byte_level(CHATML), "auto") == "chat" and choose_template(byte_level(), "auto") == "alpaca"
    assert choose_template(byte_level(CHATML), "alpaca") == "alpaca"
    with pytest.raises(
        UserError, match=r"data\.template is chat, but the tokenizer has no chat template; take alpaca"
    ):
        choose_template(byte_level(), "chat")


def test_a_chat_prompt_is_the_instruction_and_the_input():
    tokenizer = byte_level(CHATML)
    text = "<|im_start|>user\nAdd the numbers.\n\n2 {2}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(tokenizer, "chat", ASKED) == text
    assert tokenizer.decode(only(ASKED, tokenizer, "chat").ids) == f"{text}the answer is 4<|im_end|>"


def test_bos_as_the_tokenizer_has_it():
    tokenizer = byte_level(bos=True)
    sample = only(BARE, tokenizer, "alpaca")
    assert tokenizer.decode(sample.ids).startswith("<bos>Below") and trained_text(tokenizer, sample) == [
        " Yes.\n<eos>"
    ]
    ((row,),) = text_rows([("a", "bc"), ("b", "c")], tokenizer, 10, rest=True)
    assert tokenizer.decode(row.ids) == "<bos>bc<eos><bos>c<eos>"
    chat = byte_level(CHATML, bos=True)
    assert "<bos>" not in chat.decode(only(BARE, chat, "chat").ids)


def test_a_sample_for_each_choice():
    tokenizer = byte_level(CHATML)
    (group, (other,)) = tokenize_records([CHOICES, BARE], tokenizer, "chat", choices=True)
    assert [trained_text(tokenizer, sample) for sample in group] == [
        [f"{text}<|im_end|>"] for text in CHOICES.choices
    ]
    assert [(sample.choice, sample.answer) for sample in group] == [(0, 1), (1, 1), (2, 1)]
    assert (other.choice, other.answer) == (-1, -1)
    one = only(CHOICES, tokenizer, "chat")
    assert trained_text(tokenizer, one) == ["it is b<|im_end|>"] and (one.choice, one.answer) == (-1, -1)


def test_the_choices_of_a_conversation_are_its_last_answers():
    tokenizer = byte_level(CHATML)
    record = Record("a:1", "x", messages=TALK.messages, choices=("x", "y"), answer=0)
    (group,) = tokenize_records([record], tokenizer, "chat", choices=True)
    assert [trained_text(tokenizer, sample) for sample in group] == [["x<|im_end|>"], ["y<|im_end|>"]]


@pytest.mark.parametrize(
    ("record", "chat", "words"),
    [
        (TALK, None, r'a\.jsonl:5: "messages" need the chat template of a tokenizer; .*"instruction" and "output"'),
        (TALK, "{{ messages[0]['content'] + 1 }}", r"a\.jsonl:5: the .* template refuses it: can only con"),
        (TALK, "{{ raise_exception('no system') }}", r"a\.jsonl:5: the .* chat template refuses it: no system"),
        (TALK, "{{ messages | length }}", r"a\.jsonl:5: the .* chat template writes .*answer 1 otherwise when"),
        (ASKED, "{{ messages[0]['content'] }}", r"a\.jsonl:3: the .* chat template writes what .* answer 1"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_fit(record, chat, words):
    with pytest.raises(UserError, match=f"^{words}"):
        tokenize_records([record], byte_level(chat), "chat" if chat else "alpaca")


def test_a_tokenizer_without_eos_or_without_a_token_for_the_answer():
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="the tokenizer has no EOS token"):
        tokenize_records([ASKED], tokenizer, "alpaca")
    with pytest.raises(UserError, match=r"^b:1: the tokenizer makes no token of '☃'; take another"):
        tokenize_records([Record("b:1", "☃", "Is it?")], metaspace(), "alpaca")


def test_documents_become_rows_of_one_length():
    tokenizer = byte_level()
    documents = [("a", "one two three"), ("b", "x" * 20), ("c", "☃ five")]
    whole = [number for _, text in documents for number in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert len(whole) % 7
    rows = [row for (row,) in text_rows(documents, tokenizer, 7, rest=True)]
    assert [number for row in rows for number in row.ids] == whole
    assert {len(row.ids) for row in rows[:-1]} == {7} and len(rows[-1].ids) == len(whole) % 7
    assert all((row.labels == row.ids).all() for row in rows)
    assert rows[-1].where == f"c: tokens from {len(whole) // 7 * 7} on"
    assert len(text_rows(documents, tokenizer, 7, rest=False)) == len(whole) // 7
    with pytest.raises(
        UserError, match=r"^a: the text has \d+ tokens, fewer than a row of data.max_length = 500; lower"
    ):
        text_rows(documents, tokenizer, 500, rest=False)


def test_a_shown_sample_tells_what_is_trained(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    tokenizer = byte_level(CHATML)
    show_samples([only(TALK, tokenizer, "chat")], tokenizer)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("a.jsonl:5: ")
    for text in (
        "⟦Hi  there ☃<|im_end|>⟧",
        "assistant\n⟦so long<|im_end|>⟧\n",
        "<|im_start|>system\nBe kind.<|im_end|>",
    ):
        assert text in err
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    show_samples([only(Record("a:1", "[red]x[/red]", "Is it?"), tokenizer, "chat")], tokenizer)
    err = capsys.readouterr().err
    assert "\x1b[32m[red]x[/red]<|im_end|>\x1b[0m" in err and "\x1b[2m<|im_start|>user\x1b[0m" in err
