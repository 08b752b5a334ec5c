import json
import logging
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from tokens import CHATML, byte_level

from sinelr_lightning.datamodules.language import LanguageData
from sinelr_lightning.errors import UserError

pytest.importorskip("transformers")

KEYS = {"input_ids", "labels", "position_ids", "segments"}


def write(folder, name="train.jsonl", count=40, **more):
    """Records of different lengths; each answer names its number."""
    path = folder / name
    asked = [
        {"instruction": "Say it." + " please" * (n * 7 % 11), "output": f"number {n}", **more} for n in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, asked)))
    return str(path)


def ready(tokenizer=None, stage="fit", rank=0, world=1, **options):
    data = LanguageData(**options)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    data.setup(stage)
    data.use_tokenizer(tokenizer or byte_level(CHATML))
    return data


def answers(data, batch):
    """The trained texts of a batch, row by row and sample by sample."""
    found = []
    for ids, labels, segments in zip(batch["input_ids"], batch["labels"], batch["segments"], strict=True):
        assert torch.equal(ids[labels != -100], labels[labels != -100])
        for segment in range(1, int(segments.max()) + 1):
            found.append(data.tokenizer.decode(labels[(segments == segment) & (labels != -100)]))
    return found


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def numbers(texts):
    return sorted(int(text.removeprefix("number ").removesuffix("<|im_end|>")) for text in texts)


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_and_its_validation_hold_every_record_once(tmp_path, packing):
    data = ready(train=write(tmp_path), packing=packing, batch_size=1, max_length=128)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) and all(batch.keys() == KEYS for batch in batches)
    trained = numbers(text for batch in batches for text in answers(data, batch))
    held = list(data.val_dataloader())
    assert all(batch.keys() == KEYS | {"indices", "choice", "answer"} for batch in held)
    left = numbers(text for batch in held for text in answers(data, batch))
    assert len(left) == 4 and sorted(trained + left) == list(range(40))
    assert sorted(torch.cat([batch["indices"] for batch in held]).tolist()) == list(range(4))
    for batch in batches:
        assert batch["input_ids"].shape == (1, 128) if packing else (batch["segments"] == 1).all()
    assert (len(batches) < 36) is packing


@pytest.mark.parametrize("packing", [True, False])
def test_batches_follow_from_seed_and_number(tmp_path, packing):
    options = {"train": write(tmp_path), "packing": packing, "batch_size": 4, "max_length": 128}
    first, again = (list(islice(ready(**options).train_dataloader(), 3)) for _ in range(2))
    assert all(map(same, first, again))
    other = next(iter(ready(**options, seed=1).train_dataloader()))
    assert not same(first[0], other)


@pytest.mark.parametrize("packing", [True, False])
def test_a_run_goes_on_in_mid_epoch(tmp_path, packing):
    options = {"train": write(tmp_path), "packing": packing, "batch_size": 2, "max_length": 96, "epoch_steps": 30}
    expected = list(ready(**options).train_dataloader())
    assert len(expected) == 30
    first = ready(**options).train_dataloader()
    list(islice(first, 11))
    resumed = ready(**options).train_dataloader()
    resumed.load_state_dict(first.state_dict())
    assert all(map(same, islice(resumed, 19), expected[11:]))


def test_two_ranks_together_see_what_one_sees(tmp_path):
    options = {"train": write(tmp_path), "batch_size": 4, "max_length": 128}
    whole = ready(**options)
    halves = [ready(**options, rank=rank, world=2) for rank in range(2)]
    for batch, *parts in zip(*(data.train_dataloader() for data in (whole, *halves)), strict=True):
        for name in KEYS:
            assert torch.equal(torch.stack([part[name] for part in parts], 1).flatten(0, 1), batch[name])
    held = [[int(n) for batch in half.val_dataloader() for n in batch["indices"]] for half in halves]
    assert sorted(held[0] + held[1]) == [0, 1, 2, 3] and len(held[0]) == len(held[1]) == 2
    assert [len(batch["indices"]) for batch in halves[0].val_dataloader()] == [2]  # batch_size is over all ranks
    with pytest.raises(UserError, match="a batch of 4 cannot be shared evenly by 3"):
        next(iter(ready(**options, world=3).train_dataloader()))


def test_choices_have_a_row_each_in_one_batch(tmp_path):
    asked = {"instruction": "Is it?\n\nAnswer format: true/false", "output": "it is true", "answer": "true"}
    which = {"instruction": "Which?", "choices": ["a", "b", "c"], "answer": 2}
    test = tmp_path / "test.jsonl"
    test.write_text("\n".join(map(json.dumps, [asked, which, {"instruction": "Say it.", "output": "so"}])))
    data = ready(stage="test", train="nowhere", validation="nowhere", test=str(test), batch_size=2)
    seen = {}
    for batch in data.test_dataloader():
        texts = answers(data, batch)
        for row, text in enumerate(texts):
            index, choice, answer = (int(batch[name][row]) for name in ("indices", "choice", "answer"))
            seen.setdefault(index, []).append((choice, answer, text.removesuffix("<|im_end|>")))
        assert len(set(batch["indices"].tolist())) <= 2
    assert seen == {
        0: [(0, 0, "it is true"), (1, 0, "it is false")],
        1: [(0, 2, "a"), (1, 2, "b"), (2, 2, "c")],
        2: [(-1, -1, "so")],
    }
    rows = len(list(ready(train=str(test), validation=str(test), packing=False, batch_size=1).train_dataloader()))
    assert rows == 3  # the right answer alone is trained


def test_the_manual_is_held_out_by_topics():
    data = ready(byte_level(), max_length=256)
    train, held = (dict(data._read[split]) for split in ("train", "val"))
    assert not train.keys() & held.keys() and len(train) + len(held) > 50
    sizes = [sum(map(len, part.values())) for part in (train, held)]
    assert 0.08 < sizes[1] / sum(sizes) <= 0.1
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (8, 256) and (batch["segments"] == 1).all()
    assert (batch["labels"][:, 0] == -100).all() and torch.equal(batch["labels"][:, 1:], batch["input_ids"][:, 1:])
    other = ready(byte_level(), max_length=256, seed=1)
    assert dict(other._read["val"]).keys() != held.keys()
    assert data.protocol()["train"] == "the Python manual"


def test_plain_text_of_a_folder(tmp_path):
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_text(f"{name} " * 50)
    (tmp_path / "c.txt").write_text("held out")
    data = ready(byte_level(), train=str(tmp_path), validation=str(tmp_path / "c.txt"), max_length=32, batch_size=1)
    text = "".join(data.tokenizer.decode(batch["input_ids"][0]) for batch in data.val_dataloader())
    assert text == "held out<eos>"
    loader = data.train_dataloader()
    whole = sum(len(data.tokenizer(f"{name} " * 50)["input_ids"]) + 1 for name in ("a.txt", "b.md", "held out"))
    assert len(loader) == data.protocol()["train_samples"] and len(loader) < whole


def test_test_files_stand_for_themselves_or_are_the_validation(tmp_path):
    train, val = write(tmp_path), write(tmp_path, "val.jsonl", 3)
    data = ready(stage=None, train=train, validation=val)
    assert all(map(same, data.val_dataloader(), data.test_dataloader())) and data.protocol()["train_records"] == 40
    held = ready(stage="test", train=train, batch_size=8)
    assert sum(len(batch["indices"]) for batch in held.test_dataloader()) == 4 and "train" not in held._groups
    held.setup("fit")
    held.use_tokenizer(held.tokenizer)
    assert sorted(held._groups) == ["train", "val"]


def test_limit_takes_the_first_training_records(tmp_path):
    data = ready(
        train=write(tmp_path), validation=write(tmp_path, "val.jsonl", 3), limit=5, packing=False, batch_size=5
    )
    (batch,) = data.train_dataloader()
    assert numbers(answers(data, batch)) == [0, 1, 2, 3, 4]
    assert data.protocol()["train_records"] == 5 and data.protocol()["val_records"] == 3


def test_padding_without_a_padding_token_is_eos(tmp_path):
    data = ready(byte_level(CHATML, pad=None), train=write(tmp_path), max_length=200)
    batch = next(iter(data.train_dataloader()))
    empty = batch["segments"] == 0
    assert empty.any() and (batch["input_ids"][empty] == data.tokenizer.eos_token_id).all()
    assert (batch["labels"][empty] == -100).all()


def test_the_protocol_says_how_the_data_was_made(tmp_path):
    train = write(tmp_path)
    told = ready(byte_level(), train=train, max_length=400).protocol()
    tokens = told.pop("train_tokens"), told.pop("val_tokens")
    assert all(tokens) and tokens[0] > tokens[1]
    assert told == {
        "train": train, "validation": None, "test": None, "validation_share": 0.1, "train_records": 36,
        "val_records": 4, "train_samples": 36, "val_samples": 4, "max_length": 400, "batch_size": 8, "data_seed": 0,
        "too_long": "error", "packing": True, "template": "alpaca",
    }  # fmt: skip
    json.dumps(told)


def test_long_records_are_named_by_line_or_left_out(tmp_path, caplog):
    train, val = write(tmp_path), write(tmp_path, "val.jsonl", 1)
    with pytest.raises(UserError, match=rf"^{train}:2: has \d+ tokens, more than data\.max_length = 48; raise"):
        ready(train=train, validation=val, max_length=48)
    with caplog.at_level(logging.INFO):
        data = ready(train=train, validation=val, max_length=48, too_long="drop")
    samples = data.protocol()["train_samples"]
    assert 0 < samples < 40 and f"left out {40 - samples} of 40 samples longer than" in caplog.text
    assert f"{train}: {samples} training samples, " in caplog.text


@pytest.mark.parametrize("rank", [0, 1])
def test_the_preview_comes_from_the_first_process(tmp_path, capsys, rank):
    path = write(tmp_path)
    ready(train=path, validation=path, preview=2, rank=rank, world=2)
    shown = capsys.readouterr().err
    assert (f"{path}:1: " in shown, f"{path}:2: " in shown, f"{path}:3: " in shown) == (rank == 0, rank == 0, False)
    assert ("number 1<|im_end|>" in shown) is (rank == 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 1}, r"data\.max_length must be at least 2, got 1"),
        ({"batch_size": 0}, r"data\.batch_size must be at least 1, got 0"),
        ({"epoch_steps": 0}, r"data\.epoch_steps must be at least 1, or null for one pass, got 0"),
        ({"limit": 0}, r"data\.limit must be at least 1, or null for all records, got 0"),
        ({"preview": -1}, r"data\.preview must be at least 0, got -1"),
        ({"validation_share": 1.0}, r"data\.validation_share must lie between 0 and 1, got 1.0"),
        ({"too_long": "cut"}, r"data\.too_long is 'cut'; error, drop and truncate are accepted"),
        ({"template": "vicuna"}, r"data\.template is 'vicuna'; auto, chat and alpaca are accepted"),
    ],
)
def test_values_out_of_range(options, words):
    with pytest.raises(UserError, match=words):
        LanguageData(**options)


def test_a_single_document_cannot_be_divided(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one two")
    with pytest.raises(
        UserError, match=r"a\.txt: has 1 record\(s\) or file\(s\), and none to train on.*data\.validation"
    ):
        ready(train=str(path))
