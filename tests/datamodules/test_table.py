"""Tables: what their columns hold, how rows become numbers and are divided, and what is wrong with a file."""

import re

import numpy as np
import pytest
import torch

from sinelr_lightning.datamodules import TableData
from sinelr_lightning.datamodules.csv_table import Encoding, read_rows
from sinelr_lightning.errors import UserError

PETS = "weight, colour, age, kind\n4.5, red, 1, cat\n30, black, 12, dog\n3.5, white, 2, cat\n25, red, 7, dog\n"


@pytest.fixture
def table(tmp_path):
    def write(text: str, name: str = "pets.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_columns_of_words_and_numbers_by_hand(table):
    rows = read_rows(table(PETS))
    encoding = Encoding.of(rows, None, "auto")
    assert encoding.target == "kind" and encoding.classes == ("cat", "dog")
    assert encoding.features == ["weight", "colour=black", "colour=red", "colour=white", "age"]
    expected = [[4.5, 0, 1, 0, 1], [30, 1, 0, 0, 12], [3.5, 0, 0, 1, 2], [25, 0, 1, 0, 7]]
    assert encoding.encode(rows).tolist() == expected
    assert encoding.targets(rows).tolist() == [0, 1, 0, 1]
    assert Encoding.from_plain(encoding.plain()) == encoding


def test_numbers_written_in_two_ways_are_one_class(table):
    rows = read_rows(table("a,kind\n1,1\n2,1.0\n3,0\n4,10\n5,1e0\n"))
    encoding = Encoding.of(rows, None, "auto")
    assert encoding.classes == ("0", "1", "10") and encoding.targets(rows).tolist() == [1, 1, 0, 2, 1]


def test_delimiters_within_quotes_and_carriage_returns(table):
    rows = read_rows(table('"size, in cm";kind\r"1,5";cat\r"2,5";dog\r'))
    assert rows.names == ["size, in cm", "kind"] and rows.column("size, in cm") == ["1,5", "2,5"]
    rows = read_rows(table('"a\nb",c\n1,"x\ny"\n'))
    assert rows.names == ["a\nb", "c"] and rows.column("c") == ["x\ny"]


def test_cells_that_nobody_asks_for_may_be_empty(table):
    encoding = Encoding.of(read_rows(table(PETS)), None, "auto")
    later = read_rows(table("age,weight,colour,kind,owner\n3,4,red,,\n", "later.csv"))
    assert encoding.encode(later).tolist() == [[4, 0, 1, 0, 3]]
    alone = Encoding.of(read_rows(table("a,b\n1,x\n2,y\n")), None, "auto")
    assert alone.encode(read_rows(table("a\n5\n", "alone.csv"))).tolist() == [[5]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_byte_order_mark_and_blank_lines(table, delimiter):
    text = PETS.replace(", ", delimiter).replace("cat\n", "cat\r\n\r\n")
    rows = read_rows(table("\ufeff" + text))
    assert rows.names == ["weight", "colour", "age", "kind"] and rows.lines == [2, 4, 5, 7]
    assert rows.column("colour") == ["red", "black", "white", "red"]


def test_whether_the_target_is_a_class_or_a_number(table):
    rows = read_rows(table(PETS))
    assert Encoding.of(rows, "age", "auto").classes == ("1", "2", "7", "12")  # few whole numbers, in their order
    assert Encoding.of(rows, "age", "number").classes == ()
    assert Encoding.of(rows, "weight", "auto").classes == ()
    assert Encoding.of(rows, "weight", "number").targets(rows).dtype == np.float32


def test_a_word_that_was_not_there_has_no_feature(table):
    encoding = Encoding.of(read_rows(table(PETS)), None, "auto")
    later = read_rows(table("age,weight,colour\n3,4,green\n", "later.csv"))  # without target, in another order
    assert encoding.encode(later).tolist() == [[4, 0, 0, 0, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no row below its header"),
        ("a\n1\n", "has one column, a; two or more are needed"),
        ("a,a\n1,2\n", ":1: a stands 2 times in the header"),
        (",a,b\n1,2,3\n", ":1: column 1 has no name in the header"),
        ('a,b\n1,"2\n3,4\n5,6\n', ":4: unexpected end of data; is a quote left open?"),
        ("a,b\n1," + 140_000 * "2" + "\n", ":2: field larger than field limit (131072); is a quote left open?"),
        ("a,b\n" + 9 * "1,2.5\n" + "NA,3.5\n", ":11: a is 'NA', in a column of numbers; a finite one is expected"),
        ("a,b\n" + 9 * "1,2.5\n" + "1e39,3.5\n", ":11: a is '1e39', in a column of numbers"),
        ("a,b\n" + "".join(f"row{i},{i % 2}\n" for i in range(30)), "a has 30 words in 30 rows"),
        ("a,b\n", "has no row below its header"),
        ("a,b\n1,2\n1\n", ":3: has 1 cells; the header has 2"),
        ("a,b\n1,2\n1, \n", ":3: b is empty; fill it in"),
        (b"a,b\n\xff,2\n", "is not UTF-8"),
        ("a,b\n1,x\n2,x\n", "the column b holds x alone; take two classes"),
    ],
)
def test_mistakes_in_a_file_are_named(table, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Encoding.of(read_rows(table(text)), None, "auto")


def test_mistakes_in_rows_of_another_file(table):
    encoding = Encoding.of(read_rows(table(PETS)), None, "auto")
    with pytest.raises(UserError, match=r"later.csv:2: age is 'old'; a finite number is expected"):
        encoding.encode(read_rows(table("age,weight,colour\nold,4,red\n", "later.csv")))
    with pytest.raises(UserError, match=r"later.csv: has no column 'colour'; did you mean color"):
        encoding.encode(read_rows(table("age,weight,color\n3,4,red\n", "later.csv")))
    with pytest.raises(UserError, match=r"later.csv:2: kind is cow, none of the classes cat, dog"):
        encoding.targets(read_rows(table("kind,age\ncow,3\n", "later.csv")))
    with pytest.raises(UserError, match=r"the column kind holds words, and data.kind is number"):
        Encoding.of(read_rows(table(PETS)), "kind", "number")
    with pytest.raises(UserError, match=r"no such file.*breast_cancer"):
        read_rows("nowhere.csv")


@pytest.mark.parametrize(
    ("name", "rows", "features", "classes"),
    [("breast_cancer", 569, 30, 2), ("diabetes", 442, 10, 0), ("iris", 150, 4, 3), ("wine", 178, 13, 3)],
)
def test_packaged_tables(name, rows, features, classes):
    from sklearn import datasets

    data = TableData(name)
    data.setup("fit")
    assert (len(data.encoding.features), len(data.encoding.classes)) == (features, classes)
    chosen = torch.cat([part["indices"] for part in data.parts.values()])
    assert sorted(chosen.tolist()) == list(range(rows))  # each row once
    truth = getattr(datasets, f"load_{name}")()
    train = data.parts["train"]
    np.testing.assert_allclose(train["x"], truth.data[train["indices"]], rtol=1e-6)
    if classes:
        named = [str(truth.target_names[label]) for label in truth.target[train["indices"]]]
        assert [data.encoding.classes[label] for label in train["y"]] == named
        shares = [part["y"].bincount() / len(part["y"]) for part in data.parts.values()]
        torch.testing.assert_close(shares[1], shares[0], atol=0.02, rtol=0)
    else:
        np.testing.assert_allclose(train["y"], truth.target[train["indices"]])


def test_batches_follow_from_their_number_and_held_out_rows_come_once():
    data = TableData("iris", batch_size=8, epoch_steps=3)
    data.setup("fit")
    loader = data.train_dataloader()
    first = list(loader)
    loader.load_state_dict({"next": 1})
    again = next(iter(loader))
    assert len(first) == 3 and torch.equal(again["x"], first[1]["x"]) and not torch.equal(again["x"], first[0]["x"])
    held = [batch["indices"] for batch in data.val_dataloader()]
    assert torch.equal(torch.cat(held), data.parts["val"]["indices"]) and len(held[0]) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "words"}, "data.kind is 'words'; auto, class and number are accepted"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
        ({"epoch_steps": 0}, "data.epoch_steps must be at least 1"),
        ({"validation_share": 0.6, "test_share": 0.4}, "leave rows to train on, got 0.6 and 0.4"),
        ({"table": "iris", "target": "petal length"}, "has no column 'petal length'; did you mean petal length (cm)"),
    ],
)
def test_mistakes_in_the_options(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        TableData(**options).setup("fit")


def test_too_few_rows_to_divide(table):
    with pytest.raises(UserError, match="4 rows leave none for val: take more, or other shares"):
        TableData(table(PETS)).setup("fit")
