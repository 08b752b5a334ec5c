"""Files of text as records, documents and labelled sentences; what is wrong in them is named by file and line."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sinelr_lightning.errors import UserError
from sinelr_lightning.files import searched_in

__all__ = [
    "Document",
    "Record",
    "Sentence",
    "holds_records",
    "python_manual",
    "read_documents",
    "read_records",
    "read_tsv",
]

RECORDS = (".jsonl", ".json")
TEXTS = (".txt", ".md")
ROLES = ("system", "user", "assistant")
FIELDS = '"instruction", "input" (may be left out) and "output", or "messages"'
SURROGATE = re.compile("[\ud800-\udfff]")
FORMAT = re.compile(r"(?:^|\s)Answer format: *(\S.*?)\s*$")

Document = tuple[str, str]
"""`(name, text)`: the name is the file, or the topic of a manual."""


@dataclass(frozen=True)
class Record:
    """A prompt and its answer.

    The prompt is `messages` where there are any, else `instruction` with `input`.

    Attributes:
        where: `file:line`, where it begins.
        output: the answer; the last one, where assistant's messages are among `messages` too.
        instruction, input: the prompt; `input` may be empty.
        messages: the conversation before the answer: `{"role": system, user or assistant, "content": …}`.
        choices: whole answers to choose from, none where it is no multiple choice.
        answer: number of the choice that is `output`, −1 without choices.
    """

    where: str
    output: str
    instruction: str = ""
    input: str = ""
    messages: tuple[dict[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    answer: int = -1


@dataclass(frozen=True)
class Sentence:
    """One sentence, or a pair of them, with the name of its class."""

    where: str
    texts: tuple[str, ...]
    label: str


def holds_records(path: str) -> bool:
    """Whether the file is one of records (.jsonl, .json); else it is one, or a folder, of plain text (.txt, .md).

    Raises:
        UserError: there is no such file, or it is of another kind.
    """
    place = Path(path)
    if not place.exists():
        raise UserError(f"{place}: no such file or folder{searched_in(place)}")
    suffix = place.suffix.lower()
    if not place.is_dir() and suffix not in RECORDS + TEXTS:
        raise UserError(
            f"{place}: ends in {suffix or 'no suffix'}; records in .jsonl or .json, plain text in .txt or .md, or a "
            "folder of such text is accepted"
        )
    return not place.is_dir() and suffix in RECORDS


def read_records(path: str) -> list[Record]:
    """Read a `.jsonl` file (an object a line, blank lines between them) or a `.json` file (a list of objects).

    An object has "instruction", "input" (may be left out or empty) and "output"; or "messages", the last of them the
    assistant's. Either may have "choices", the whole answers to choose from, with "answer", the number of the right
    one from 0 on or its text; "output" may then be left out. An "answer" without "choices" makes choices where the
    instruction ends with a line "Answer format: a/b/c": the output with a, b and c in the answer's place.

    Raises:
        UserError: with file and line: what is no UTF-8, no JSON or no list, a field that is missing, empty or of the
            wrong type, an answer that is not among the choices; a file without a record.
    """
    place = Path(path)
    text = _read_text(place)
    objects = _lines(place, text) if place.suffix.lower() == ".jsonl" else _items(place, text)
    records = [_record(item, where) for where, item in objects]
    if not records:
        raise UserError(f"{place}: holds no record; objects with {FIELDS} are expected")
    return records


def read_documents(path: str) -> list[Document]:
    """Read a file of plain text, or all .txt and .md files at any depth below a folder, in the order of their paths.

    Raises:
        UserError: no such file in the folder, one without text, or one that is no UTF-8.
    """
    place = Path(path)
    files = sorted(file for file in place.rglob("*") if _is_text(file, place)) if place.is_dir() else [place]
    if not files:
        raise UserError(
            f"{place}: holds no .txt or .md file; name a folder of them, or a .jsonl or .json file of records"
        )
    return [(str(file), _read_text(file)) for file in files]


def python_manual() -> list[Document]:
    """Give the topics of Python's own manual, those of `help()`, in the order of their names: no download."""
    from pydoc_data.topics import topics

    return sorted(topics.items())


def read_tsv(path: str) -> list[Sentence]:
    """Read labelled sentences as GLUE has them: tab-separated columns under a header, quotes without a meaning.

    The header names `label` and one or two columns of text (`sentence`, or `sentence1` and `sentence2`, or `question`
    and `sentence`, …); `index` and `idx` are passed over.

    Raises:
        UserError: with file and line: what is no UTF-8, another header, a row of other columns, or an empty column.
    """
    place = Path(path)
    if not place.is_file():
        raise UserError(f"{place}: no such file{searched_in(place)}")
    header, *rows = _read_text(place).split("\n")
    names = header.split("\t")
    texts = [name for name in names if name not in ("label", "index", "idx")]
    if names.count("label") != 1 or not 1 <= len(texts) <= 2:
        raise UserError(
            f"{place}:1: the header names {', '.join(names)}; label and one or two columns of text, separated by "
            "tabs, are accepted, as in sentence, label or sentence1, sentence2, label"
        )
    sentences = []
    for number, line in enumerate(rows, 2):
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != len(names):
            raise UserError(f"{place}:{number}: has {len(cells)} columns; the header has {len(names)}")
        row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        for name in (*texts, "label"):
            if not row[name]:
                raise UserError(f"{place}:{number}: {name} is empty; text is expected in each column")
        sentences.append(Sentence(f"{place}:{number}", tuple(row[name] for name in texts), row["label"]))
    if not sentences:
        raise UserError(f"{place}: holds no row below its header")
    return sentences


def _is_text(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in TEXTS and not hidden and file.is_file()


def _read_text(place: Path) -> str:
    """The file's text, lines ended by \\n; a byte order mark is no part of it."""
    try:
        content = place.read_bytes()
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); name a file that you may read") from error
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{place}:{line}: is not UTF-8; save the file in that encoding") from error
    if not text.strip():
        raise UserError(f"{place}: is empty; text is expected in it")
    return text


def _lines(place: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{place}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{place}:{number}: is not JSON ({error}); each line holds one object with {FIELDS}"
                ) from error


def _items(place: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The objects of a list, each with the line on which it begins."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(
            f"{place}:{line}: is not JSON ({error}); a list of objects with {FIELDS} is expected"
        ) from error
    if not isinstance(items, list):
        raise UserError(f"{place}: holds {_kind(items)}; a list of objects with {FIELDS} is expected")
    decoder = json.JSONDecoder()
    line, seen, position = 1, 0, text.index("[") + 1
    for item in items:
        while text[position] in " \t\r\n,":
            position += 1
        line += text.count("\n", seen, position)
        seen = position
        position = decoder.raw_decode(text, position)[1]
        yield f"{place}:{line}", item


def _record(item: Any, where: str) -> Record:
    if not isinstance(item, dict):
        raise UserError(f"{where}: is {_kind(item)}; an object with {FIELDS} is expected")
    if "messages" not in item and "instruction" not in item:
        raise UserError(f'{where}: has no "instruction" and no "messages"; {FIELDS} are accepted')
    choices, answer = _given_choices(item, where) if "choices" in item else ((), -1)
    if "messages" in item:
        messages = _messages(item["messages"], where)
        record = Record(where, messages[-1]["content"], messages=messages[:-1])
    else:
        output = choices[answer] if choices and "output" not in item else _text(item, "output", where)
        asked = "" if item.get("input") in (None, "") else _text(item, "input", where, empty=True)
        record = Record(where, output, _text(item, "instruction", where), asked)
    if choices and record.output != choices[answer]:
        raise UserError(f'{where}: its answer is not the choice that "answer" names, {choices[answer]!r}')
    if not choices and isinstance(item.get("answer"), str):
        choices, answer = _format_choices(record, item["answer"])
    return replace(record, choices=choices, answer=answer)


def _messages(messages: Any, where: str) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        kind = _kind(messages)
        raise UserError(f'{where}: "messages" is {kind}; a list of objects with "role" and "content" is expected')
    for number, message in enumerate(messages, 1):
        place = f"{where}: message {number}"
        if not isinstance(message, dict):
            raise UserError(f'{place} is {_kind(message)}; an object with "role" and "content" is expected')
        if message.get("role") not in ROLES:
            raise UserError(f'{place}: "role" is {message.get("role")!r}; {", ".join(ROLES)} are accepted')
        _text(message, "content", place)
    if messages[0]["role"] == "assistant":
        raise UserError(f"{where}: the first message is the assistant's; a system's or user's message comes first")
    if messages[-1]["role"] != "assistant":
        role = messages[-1]["role"]
        raise UserError(f"{where}: the last message is the {role}'s; the assistant's answer comes last")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _given_choices(item: dict[str, Any], where: str) -> tuple[tuple[str, ...], int]:
    choices = item["choices"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f'{where}: "choices" must be a list of two or more answers')
    for number, choice in enumerate(choices):
        _check_text(choice, f"choice {number}", where)
    if len(set(choices)) < len(choices):
        raise UserError(f'{where}: "choices" names an answer twice; each must differ from the others')
    answer = item.get("answer")
    if isinstance(answer, str) and answer in choices:
        return tuple(choices), choices.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return tuple(choices), answer
    raise UserError(
        f'{where}: "answer" is {answer!r}, which is not among the choices; the numbers from 0 to {len(choices) - 1} '
        f"and the texts {', '.join(choices)} are accepted"
    )


def _format_choices(record: Record, answer: str) -> tuple[tuple[str, ...], int]:
    """The output with each word of the line "Answer format: a/b/c" in the answer's place; none without that line."""
    found = FORMAT.search(record.instruction)
    if found is None:
        return (), -1
    words = [word.strip() for word in found[1].split("/")]
    if len(words) < 2:  # "a number": nothing to choose from
        return (), -1
    if answer not in words:
        raise UserError(f'{record.where}: "answer" is {answer!r}; its answer format allows {", ".join(words)}')
    places = list(re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", record.output))
    if not places:
        raise UserError(f'{record.where}: "output" does not hold the answer {answer!r}; it must, for the choices')
    before, after = record.output[: places[-1].start()], record.output[places[-1].end() :]
    return tuple(f"{before}{word}{after}" for word in words), words.index(answer)


def _text(item: dict[str, Any], key: str, where: str, empty: bool = False) -> str:
    """`item[key]`, which must be text, and more than white space unless `empty`."""
    if key not in item:
        raise UserError(f'{where}: has no "{key}"; {FIELDS} are accepted')
    return _check_text(item[key], f'"{key}"', where, empty)


def _check_text(value: Any, what: str, where: str, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} is {_kind(value)}; text is expected")
    if not value.strip() and not empty:
        raise UserError(f"{where}: {what} is empty; text is expected")
    if SURROGATE.search(value):
        raise UserError(f"{where}: {what} holds half of a surrogate pair, \\ud800 to \\udfff, which is no character")
    return value


def _kind(value: Any) -> str:
    """What JSON calls a value, with its article."""
    if isinstance(value, dict | list):
        return ("an object" if isinstance(value, dict) else "a list") if value else "empty"
    return "null" if value is None else {bool: "true or false", str: "text"}.get(type(value), "a number")
