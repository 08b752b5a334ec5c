import json

import pytest

from sinelr_lightning.datamodules.text_records import (
    holds_records,
    python_manual,
    read_documents,
    read_records,
    read_tsv,
)
from sinelr_lightning.errors import UserError

PLAIN = {"instruction": "Add.", "input": "1 2", "output": "3"}
BOOLQ = {
    "instruction": "Please answer with true or false, question: is it?\n\nAnswer format: true/false",
    "input": "",
    "output": "the correct answer is false",
    "answer": "false",
}
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]


def lines(folder, *items, name="data.jsonl"):
    """A file with an item a line, text as it is."""
    path = folder / name
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in items))
    return str(path)


def test_records_of_a_jsonl_file_know_their_lines(tmp_path):
    path = lines(tmp_path, PLAIN, "", {**PLAIN, "input": None, "note": 4}, {"messages": TALK}, "")
    first, second, talk = read_records(path)
    assert (first.where, first.instruction, first.input, first.output) == (f"{path}:1", "Add.", "1 2", "3")
    assert (second.where, second.input, second.choices, second.answer) == (f"{path}:3", "", (), -1)
    assert (talk.where, talk.messages, talk.output) == (f"{path}:4", (TALK[0],), "Yes?")


@pytest.mark.parametrize("indent", [None, 4])
def test_records_of_a_json_list_know_their_lines(tmp_path, indent):
    path = lines(
        tmp_path, "", json.dumps([PLAIN, {**BOOLQ, "x": [[], {"y": "],["}]}, PLAIN], indent=indent), name="a.json"
    )
    places = {None: [2, 2, 2], 4: [3, 8, 20]}[indent]
    assert [record.where for record in read_records(path)] == [f"{path}:{place}" for place in places]
    if indent:
        text = (tmp_path / "a.json").read_text().split("\n")
        assert all(text[place - 1].strip() == "{" for place in places)


def test_a_byte_order_mark_line_ends_and_separators_within_text(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({**PLAIN, "output": "a\u2028b"}, ensure_ascii=False), json.dumps(PLAIN)]
    path.write_bytes("\ufeff".encode() + "\r\n".join(rows).encode())
    assert [(r.where, r.output) for r in read_records(str(path))] == [(f"{path}:1", "a\u2028b"), (f"{path}:2", "3")]


def test_a_format_without_alternatives_makes_no_choices(tmp_path):
    asked = {"instruction": "How many?\n\nAnswer format: a number", "output": "It is 3.", "answer": "3"}
    (record,) = read_records(lines(tmp_path, asked))
    assert record.choices == () and record.answer == -1 and record.output == "It is 3."


def test_an_answer_format_makes_choices(tmp_path):
    text = "Choose.\n\nAnswer1: a Answer10: b\n\nAnswer format: answer1/answer10"
    many = {
        "instruction": text,
        "output": "answer1 is no answer; the correct answer is answer10",
        "answer": "answer10",
    }
    first, second, third = read_records(lines(tmp_path, BOOLQ, many, {**PLAIN, "answer": "42.0"}))
    assert first.choices == ("the correct answer is true", "the correct answer is false") and first.answer == 1
    assert second.choices == (
        "answer1 is no answer; the correct answer is answer1",
        "answer1 is no answer; the correct answer is answer10",
    )
    assert second.choices[second.answer] == second.output
    assert (third.choices, third.answer) == (
        (),
        -1,
    )  # an answer to nothing to choose from says no more than the output


def test_given_choices(tmp_path):
    asked, talk = (
        {"instruction": "Which?", "choices": ["a", "b", "c"]},
        {"messages": TALK, "choices": ["No!", "Yes?"]},
    )
    records = read_records(
        lines(tmp_path, {**asked, "answer": 2}, {**asked, "answer": "b", "output": "b"}, {**talk, "answer": 1})
    )
    assert [(record.output, record.answer) for record in records] == [("c", 2), ("b", 1), ("Yes?", 1)]
    assert records[0].choices == ("a", "b", "c") and records[2].choices == ("No!", "Yes?")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("{", r":2: is not JSON \(.*\); each line holds one object with \"instruction\""),
        pytest.param("[" * 100_000, r":2: is not JSON", id="deep"),
        ("3", r':2: is a number; an object with "instruction", "input" \(may be'),
        ({"text": "a"}, r':2: has no "instruction" and no "messages"; "instruction", .*are accepted$'),
        ({"instruction": "a"}, r':2: has no "output"; "instruction", .*are accepted$'),
        ({"instruction": " ", "output": "a"}, r':2: "instruction" is empty; text is expected'),
        ({"instruction": "a", "output": "\n"}, r':2: "output" is empty'),
        ({"instruction": "a", "output": 3}, r':2: "output" is a number; text is expected'),
        ({"instruction": "a", "output": None}, r':2: "output" is null'),
        ({"instruction": "a", "output": '\ud800'}, r':2: "output" holds half of a surrogate pair'),
        ({"instruction": ["a"], "output": "b"}, r':2: "instruction" is a list'),
        ({**PLAIN, "input": {"a": 1}}, r':2: "input" is an object'),
        ({"messages": []}, r':2: "messages" is empty; a list of objects with "role" and "content" is expected'),
        ({"messages": "Hi"}, r':2: "messages" is text'),
        ({"messages": ["Hi"]}, r":2: message 1 is text"),
        ({"messages": [{"role": "bot", "content": "a"}]}, r":2: message 1: .*'bot'; system, user, assistant are"),
        ({"messages": [TALK[0], {"role": "assistant"}]}, r':2: message 2: has no "content"'),
        ({"messages": TALK[:1]}, r":2: the last message is the user's; the assistant's answer comes last"),
        ({"messages": TALK[1:]}, r":2: the first message is the assistant's"),
        ({**PLAIN, "choices": ["3"], "answer": 0}, r':2: "choices" must be a list of two or more answers'),
        ({**PLAIN, "choices": "34", "answer": 0}, r':2: "choices" must be a list'),
        ({**PLAIN, "choices": ["3", 4], "answer": 0}, r":2: choice 1 is a number; text is expected"),
        ({**PLAIN, "choices": ["3", "\ud800"], "answer": 0}, r":2: choice 1 holds half of a surrogate pair"),
        ({**PLAIN, "choices": ["3", "3"], "answer": 0}, r':2: "choices" names an answer twice'),
        ({**PLAIN, "choices": ["3", "4"]}, r':2: "answer" is None, which .*from 0 to 1 and the texts 3, 4'),
        ({**PLAIN, "choices": ["3", "4"], "answer": 2}, r':2: "answer" is 2, which is not among the choices'),
        ({**PLAIN, "choices": ["3", "4"], "answer": True}, r':2: "answer" is True, which is not among the choices'),
        ({**PLAIN, "choices": ["3", "4"], "answer": "4"}, r""":2: its answer is not the choice that .* names, '4'"""),
        ({**BOOLQ, "answer": "maybe"}, r""":2: "answer" is 'maybe'; its answer format allows true, false$"""),
        ({**BOOLQ, "output": "it is so"}, r""":2: "output" does not hold the answer 'false'"""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_record_is_named_by_line(tmp_path, item, words):
    path = lines(tmp_path, PLAIN, item)
    with pytest.raises(UserError, match=f"^{path}{words}") as error:
        read_records(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", ": is empty"),
        ("a.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction": "\xff"}', ":2: is not UTF-8"),
        (
            "a.json",
            b'[\n{"instruction": "a", "output": "b"},\n{"instruction": }]',
            r":3: is not JSON \(Expecting value",
        ),
        ("a.json", b'{"instruction": "a", "output": "b"}', ": holds an object; a list of objects with"),
        ("a.json", b"[]", ": holds no record"),
        ("a.json", b'[\n\n{"instruction": "a"}]', ':3: has no "output"'),
    ],
)
def test_what_is_wrong_with_a_file_of_records(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path / name}{words}"):
        read_records(str(tmp_path / name))


def test_the_suffix_says_what_a_file_holds(tmp_path):
    for name in ("a.jsonl", "a.JSON", "a.txt", "a.md", "a.csv", "a"):
        (tmp_path / name).write_text("a")
    assert [holds_records(str(tmp_path / name)) for name in ("a.jsonl", "a.JSON", "a.txt", "a.md")] == [True] * 2 + [
        False
    ] * 2
    assert not holds_records(str(tmp_path))
    with pytest.raises(
        UserError, match=r"a\.csv: ends in \.csv; records in \.jsonl or \.json, plain text in \.txt or \.md"
    ):
        holds_records(str(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="a: ends in no suffix"):
        holds_records(str(tmp_path / "a"))
    with pytest.raises(UserError, match=r"b\.jsonl: no such file or folder in "):
        holds_records("b.jsonl")


def test_documents_of_a_file_and_of_a_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".git").mkdir()
    for name, text in (
        ("b.txt", "B"),
        ("deep/a.md", "A\r\nA"),
        ("c.json", "{}"),
        (".git/d.txt", "D"),
        (".e.txt", "E"),
    ):
        (tmp_path / name).write_bytes(text.encode())
    assert read_documents(str(tmp_path)) == [(str(tmp_path / "b.txt"), "B"), (str(tmp_path / "deep/a.md"), "A\nA")]
    assert read_documents(str(tmp_path / "b.txt")) == [(str(tmp_path / "b.txt"), "B")]
    (tmp_path / "z.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"z\.txt: is empty"):
        read_documents(str(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: holds no \.txt or \.md file"):
        read_documents(str(tmp_path / "none"))


def test_the_manual_of_python():
    names, texts = zip(*python_manual(), strict=True)
    assert len(names) > 50 and list(names) == sorted(names) and "assert" in names
    assert all(text.strip() for text in texts)


@pytest.mark.parametrize(
    ("header", "row", "texts"),
    [
        ("sentence\tlabel", "it 's \"good\t1", ("it 's \"good",)),
        ("index\tsentence1\tsentence2\tlabel", "7\tone\ttwo\t1", ("one", "two")),
        ("label\tquestion\tsentence\tidx", "1\twhy ?\tso \t3", ("why ?", "so")),
    ],
)
def test_labelled_sentences(tmp_path, header, row, texts):
    path = lines(tmp_path, header, row, row, "", row, name="a.tsv")
    sentences = read_tsv(path)
    assert [sentence.where for sentence in sentences] == [f"{path}:{line}" for line in (2, 3, 5)]
    assert {(sentence.texts, sentence.label) for sentence in sentences} == {(texts, "1")}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["a good one\t1"], ":1: the header names a good one, 1; label and one or two columns of text"),
        (["a\tb\tc\tlabel", "1\t2\t3\t4"], ":1: the header names a, b, c, label; "),
        (["index\tlabel", "1\t1"], ":1: the header names index, label"),
        (["sentence\tlabel", "a\t1", "b"], ":3: has 1 columns; the header has 2"),
        (["sentence\tlabel", "a\t1\t"], ":2: has 3 columns"),
        (["sentence\tlabel", "a\t "], ":2: label is empty"),
        (["sentence\tlabel", " \t1"], ":2: sentence is empty"),
        (["sentence\tlabel", ""], ": holds no row below its header"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_by_line(tmp_path, rows, words):
    path = lines(tmp_path, *rows, name="a.tsv")
    with pytest.raises(UserError, match=f"^{path}{words}"):
        read_tsv(path)
    with pytest.raises(UserError, match=r"b\.tsv: no such file in "):
        read_tsv("b.tsv")
