"""Tables as numbers: a CSV file, or one that comes with scikit-learn; what is wrong is named by line and column."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from sinelr_lightning.errors import UserError
from sinelr_lightning.files import searched_in

__all__ = ["Encoding", "Kind", "Rows", "read_rows"]

Kind = Literal["auto", "class", "number"]

PACKAGED = ("breast_cancer", "diabetes", "iris", "wine")  # of scikit-learn
DELIMITERS = ",;\t"
LARGEST = float(np.finfo(np.float32).max)
FEW = 20  # distinct whole numbers up to which a target of numbers is taken for classes


@dataclass(frozen=True)
class Rows:
    """A table as it was written.

    Attributes:
        source: the file, or the name of a packaged table.
        names: of the columns.
        cells: text of each row's cells.
        lines: where each row is in the file.
    """

    source: str
    names: list[str]
    cells: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """The cells of one column.

        Raises:
            UserError: there is no such column, or a cell of it is empty.
        """
        if name not in self.names:
            near = get_close_matches(name, self.names, n=1)
            hint = f"did you mean {near[0]}" if near else f"it has {', '.join(self.names[:8])}"
            raise UserError(f"{self.source}: has no column {name!r}; {hint}")
        place = self.names.index(name)
        cells = [row[place] for row in self.cells]
        if "" in cells:
            where = f"{self.source}:{self.lines[cells.index('')]}"
            raise UserError(f"{where}: {name} is empty; fill it in, or leave the row or the column out")
        return cells


def read_rows(table: str) -> Rows:
    """Read a packaged table, or a CSV file: a header of names, then rows separated by commas, semicolons or tabs.

    Raises:
        UserError: with the line: no such file, no UTF-8, a column without a name or two of one, no row, a row of
            another length, a quote left open.
    """
    return _packaged(table) if table in PACKAGED else _csv(Path(table))


def _packaged(name: str) -> Rows:
    from sklearn import datasets

    table: Any = getattr(datasets, f"load_{name}")()
    targets = [f"{value:g}" for value in table.target]
    if hasattr(table, "target_names"):
        targets = [str(table.target_names[value]) for value in table.target]
    cells = [
        [repr(float(value)) for value in row] + [target] for row, target in zip(table.data, targets, strict=True)
    ]
    return Rows(name, [*map(str, table.feature_names), "target"], cells, list(range(1, len(cells) + 1)))


def _csv(place: Path) -> Rows:
    if not place.is_file():
        known = ", ".join(PACKAGED)
        raise UserError(f"{place}: no such file{searched_in(place)}; a CSV file or one of {known} is accepted")
    try:
        text = place.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: is not UTF-8; save the file in that encoding") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    (_, names), *rows = _records(place, text) or [(1, [])]
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"{place}:1: column {number} has no name in the header")
        if names.count(name) > 1:
            raise UserError(f"{place}:1: {name} stands {names.count(name)} times in the header")
    for line, row in rows:
        if len(row) != len(names):
            raise UserError(f"{place}:{line}: has {len(row)} cells; the header has {len(names)}")
    if not rows:
        raise UserError(f"{place}: has no row below its header")
    return Rows(str(place), names, [row for _, row in rows], [line for line, _ in rows])


def _records(place: Path, text: str) -> list[tuple[int, list[str]]]:
    """Line and cells of each record, by the delimiter that cuts header and first row alike, into the most cells."""

    def cut(delimiter: str, most: int | None = None) -> list[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
        records = []
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    records.append((reader.line_num, [cell.strip() for cell in row]))
                if len(records) == most:
                    break
        except csv.Error as error:
            raise UserError(f"{place}:{reader.line_num}: {error}; is a quote left open?") from error
        return records

    def fits(delimiter: str) -> tuple[bool, int]:
        try:
            sizes = [len(row) for _, row in cut(delimiter, 2)]
        except UserError:
            return False, text.partition("\n")[0].count(delimiter) + 1
        return len(set(sizes)) == 1 and sizes[0] > 1, max(sizes, default=0)

    return cut(max(DELIMITERS, key=fits))


@dataclass(frozen=True)
class Encoding:
    """How the cells of a table become numbers.

    A column of numbers is one feature; a column of words has a feature for each of its words, 1 where a row has it.

    Attributes:
        columns: name and words of each column but the target; no words for numbers.
        target: name of the column to predict.
        classes: its values, in the order of the labels; none where it is a number.
    """

    columns: tuple[tuple[str, tuple[str, ...]], ...]
    target: str
    classes: tuple[str, ...]

    @classmethod
    def of(cls, rows: Rows, target: str | None, kind: Kind) -> Self:
        """Find out what the columns hold.

        Args:
            rows: the table.
            target: column to predict; None for the last one.
            kind: whether the target is a class or a number; "auto" takes words, and up to 20 different whole numbers,
                for classes.

        Raises:
            UserError: no such column, a target of words that should be a number, or of one class alone.
        """
        if len(rows.names) < 2:
            raise UserError(f"{rows.source}: has one column, {rows.names[0]}; two or more are needed")
        target = rows.names[-1] if target is None else target
        values = rows.column(target)
        numbers = _numbers(values)
        if kind == "number" and numbers is None:
            raise UserError(f"{rows.source}: the column {target} holds words, and data.kind is number")
        whole = numbers is not None and all(value == round(value) for value in numbers)
        few = len(set(values)) <= FEW
        classes: tuple[str, ...] = ()
        if kind == "class" or numbers is None or (kind == "auto" and whole and few):
            classes = tuple(sorted(set(values)) if numbers is None else _by_value(values))
            if len(classes) < 2:
                raise UserError(f"{rows.source}: the column {target} holds {classes[0]} alone; take two classes")
        return cls(tuple((name, _words(rows, name)) for name in rows.names if name != target), target, classes)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """From what `plain` gave."""
        columns = tuple((name, tuple(words)) for name, words in plain["columns"])
        return cls(columns, plain["target"], tuple(plain["classes"]))

    def plain(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        columns = [[name, list(words)] for name, words in self.columns]
        return {"columns": columns, "target": self.target, "classes": list(self.classes)}

    @property
    def features(self) -> list[str]:
        """Names of the features: of a column of words `column=word`."""
        return [
            feature
            for name, words in self.columns
            for feature in ([f"{name}={word}" for word in words] if words else [name])
        ]

    def encode(self, rows: Rows) -> np.ndarray:
        """The features of each row, float32 [N, F]; a word that was not there before has none.

        Raises:
            UserError: a column is missing, or a cell of a column of numbers is none.
        """
        parts = []
        for name, words in self.columns:
            if words:
                cells = rows.column(name)
                numbers = {word: number for number, word in enumerate(words)}
                part = np.zeros((len(cells), len(words) + 1), np.float32)  # the last is of words that are new
                part[np.arange(len(cells)), [numbers.get(cell, len(words)) for cell in cells]] = 1
                parts.append(part[:, :-1])
            else:
                parts.append(np.array(_column_of_numbers(rows, name))[:, None])
        return np.concatenate(parts, 1).astype(np.float32)

    def targets(self, rows: Rows) -> np.ndarray:
        """Labels int64 [N], or numbers float32 [N].

        Raises:
            UserError: a class that is none of `classes`, or a cell that is no number.
        """
        if not self.classes:
            return np.array(_column_of_numbers(rows, self.target), np.float32)
        cells = rows.column(self.target)
        labels = {name: number for number, name in enumerate(self.classes)}
        if _numbers(self.classes) is not None:
            cells = [_shortest(cell) for cell in cells]  # 1 and 1.0 are one class
        for line, cell in zip(rows.lines, cells, strict=True):
            if cell not in labels:
                known = ", ".join(self.classes[:8])
                raise UserError(f"{rows.source}:{line}: {self.target} is {cell}, none of the classes {known}")
        return np.array([labels[cell] for cell in cells], np.int64)


def _column_of_numbers(rows: Rows, name: str) -> list[float]:
    numbers = []
    for line, cell in zip(rows.lines, rows.column(name), strict=True):
        number = _number(cell)
        if number is None:
            raise UserError(f"{rows.source}:{line}: {name} is {cell!r}; a finite number is expected")
        numbers.append(number)
    return numbers


def _words(rows: Rows, name: str) -> tuple[str, ...]:
    """The words of a column, in their order; none where it holds numbers.

    Raises:
        UserError: most of its cells are numbers but not all, or nearly each row has a word of its own.
    """
    cells = rows.column(name)
    others = [(line, cell) for line, cell in zip(rows.lines, cells, strict=True) if _number(cell) is None]
    if not others:
        return ()
    if 2 * len(others) < len(cells):
        line, cell = others[0]
        raise UserError(f"{rows.source}:{line}: {name} is {cell!r}, in a column of numbers; a finite one is expected")
    words = sorted(set(cells))
    if len(words) > max(FEW, len(cells) / 2):
        raise UserError(f"{rows.source}: {name} has {len(words)} words in {len(cells)} rows: leave that column out")
    return tuple(words)


def _by_value(cells: Sequence[str]) -> list[str]:
    return sorted({_shortest(cell) for cell in cells}, key=float)


def _shortest(cell: str) -> str:
    """A number in one form whatever way it was written: 1.0 and 1e0 as 1; other text as it is."""
    number = _number(cell)
    return cell if number is None else repr(number).removesuffix(".0")


def _numbers(cells: Sequence[str]) -> list[float] | None:
    """The cells as numbers, None where one of them is none."""
    numbers = [_number(cell) for cell in cells]
    return None if None in numbers else [number for number in numbers if number is not None]


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if abs(number) <= LARGEST else None  # NaN is below nothing
