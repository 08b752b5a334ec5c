"""Turns the parser's tree of complaints into the one line that names the key and the likely right one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jsonargparse import ArgumentParser

from sinelr_lightning.cli import near

__all__ = ["one_line"]

_NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Expected a path",
    "Unable to load config '",
)
# What says more than "is not of this type" when a value fits none of several types.
_TELLING = ("unrecognized", "not accepted", "does not accept", "dot import path", "required")


@dataclass(frozen=True)
class Complaint:
    """One leaf of the tree: what is wrong, under which key, in the arguments of which class."""

    text: str
    key: str
    owner: str


def one_line(message: str, known: Sequence[str] = (), classes: Sequence[type] = ()) -> str:
    """Find the most telling complaint in a message of jsonargparse and say it with its key and near names.

    Args:
        message: the parser's message, of one or many lines.
        known: all options at the top, as `--trainer.max_steps` or `trainer.max_steps`.
        classes: classes that a `class_path` may name.
    """
    complaints = _complaints(message)
    if not complaints:
        return " ".join(message.split())
    telling = [c for c in complaints if any(word in c.text.lower() for word in _TELLING)]
    # A number that may also be an object: that the text names no class is not what is wrong with it.
    numbers = {c.key for c in complaints if re.match(r"Expected a <class '(int|float)'>", c.text)}
    telling = [c for c in telling if not ("dot import path" in c.text and c.key in numbers)]
    first = [*telling, *complaints][0]
    if first.text.startswith("Expected a ") and "dot import path" not in first.text:
        first = replace(first, text=_alternatives(message, first, complaints))
    return _say(first, [option.removeprefix("--") for option in known], classes)


def _alternatives(message: str, first: Complaint, complaints: Sequence[Complaint]) -> str:
    """Join what the types of one key would each accept, and add the value if the message has it."""
    kinds = [c.text for c in complaints if c.key == first.key and c.text.startswith("Expected a ")]
    kinds = [kind for kind in dict.fromkeys(kinds) if "dot import path" not in kind]
    if len(kinds) == 1 and "Got value" in first.text:
        return first.text
    value = re.search(r"Given value: (?!NestedArg)(.+?)(\. Got value:|$)", message, re.MULTILINE)
    joined = " or ".join(kind.removeprefix("Expected a ") for kind in kinds)
    return f"Expected a {joined}" + (f". Got value: {value[1]}" if value else "")


def _complaints(message: str) -> list[Complaint]:
    found: list[Complaint] = []
    stack: list[tuple[int, str, str]] = []  # indentation, key, class of the lines above
    for line in message.splitlines():
        indentation = len(line) - len(line.lstrip())
        text = re.sub(
            r"^Type .* expects a function or a callable class: ", "", line.strip().removeprefix("- ").strip()
        )
        while stack and stack[-1][0] >= indentation and text:
            stack.pop()
        if match := re.match(r'Parser key "([^"]+)":\s*(.*)', text):
            stack.append((indentation, match[1], ""))
            text = match[2].strip()
        elif match := re.match(r"Problem with given class_path '([^']+)':\s*(.*)", text):
            stack.append((indentation, "", match[1].rsplit(".", 1)[-1]))
            text = match[2].strip()
        if text and not text.startswith(_NOISE):
            key = ".".join(key for _, key, _ in stack if key)
            found.append(Complaint(text, key, next((owner for _, _, owner in reversed(stack) if owner), "")))
    return found


def _say(complaint: Complaint, known: Sequence[str], classes: Sequence[type]) -> str:
    text, key = complaint.text, complaint.key
    where = f"{key}: " if key else ""
    made = re.search(r"Got value: Namespace\(class_path='([^']+)'", text)
    owner = made[1].rsplit(".", 1)[-1] if made else complaint.owner
    cls = next((c for c in classes if c.__name__ == owner), None)
    options = _keys(cls) if cls else known
    has = f"{owner} has " if cls else ""
    if match := re.match(r"unrecognized arguments: (-*)([^\s=]+)", text, re.IGNORECASE):
        dashes, word = match.groups()
        if cls:
            return f"{where}{has}no key {word!r}{_near_key(word, options)}"
        if not dashes:
            hint = f", did you mean --config {word}?" if word.endswith((".yaml", ".yml")) else ""
            return f"{word!r} belongs to no option{hint}"
        return f"unknown option {dashes}{word}{near(f'--{word}', [f'--{option}' for option in options])}"
    if match := re.match(r"the following arguments are required: (.+)", text, re.IGNORECASE):
        missing = ", ".join(f"--{name.strip().removeprefix('--').split('.')[-1]}" for name in match[1].split(","))
        return f"{missing} missing: give a configuration, --config FILE"
    if match := re.match(r"(?:Subcommand '[^']+' does not accept option|Option) '([^']+)'", text):
        return f"{where}{has}no key {match[1]!r}{_near_key(match[1], options)}"
    if match := re.match(r"Group '([^']+)' does not accept option '([^']+)'", text):
        inside = [option.removeprefix(f"{match[1]}.") for option in options if option.startswith(f"{match[1]}.")]
        return f"{where}{match[1]} has no key {match[2]!r}{near(match[2], inside)}"
    if match := re.match(r"Expected a dot import path string: (\S+)", text):
        return f"{where}unknown class {match[1]!r}{near(match[1], [c.__name__ for c in classes])}"
    if match := re.match(r'Unable to load config "(.*)"', text):
        return f"{where}{match[1]!r} is no file; its keys are given one by one, as {key}.KEY"
    text = re.sub(r"<class '([^']+)'>", r"\1", text).replace("typing.Literal", "one of ")
    return where + text.replace("Expected a ", "expected ")


def _near_key(wrong: str, options: Sequence[str]) -> str:
    """Compare the whole key, else its first part: in `linea.init_args.rank` that is what is wrong."""
    whole = near(wrong, options)
    return whole if "did you mean" in whole else near(wrong.split(".")[0], sorted({o.split(".")[0] for o in options}))


def _keys(cls: type) -> list[str]:
    """All keys that the constructor of `cls` takes, those of nested groups with their dots."""
    parser = ArgumentParser()
    parser.add_class_arguments(cls, fail_untyped=False)
    return [action.dest for action in parser._actions if not action.dest.endswith("help")]
