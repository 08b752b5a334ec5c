from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from tokens import byte_level, paired

from sinelr_lightning.datamodules.sentences import SentenceData
from sinelr_lightning.errors import UserError

pytest.importorskip("transformers")


def write(folder, name="train.tsv", count=30, labels=("0", "1"), header="sentence\tlabel"):
    rows = [f"sentence {n}{' more' * (n * 7 % 5)}\t{labels[n % len(labels)]}" for n in range(count)]
    (folder / name).write_text("\n".join([header, *rows]))
    return str(folder / name)


def ready(tokenizer=None, stage="fit", rank=0, world=1, **options):
    data = SentenceData(**options)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    data.setup(stage)
    data.use_tokenizer(tokenizer or byte_level())
    return data


def told(data, batches):
    """`(sentence's number, class)` of each row."""
    found = []
    for batch in batches:
        for ids, segments, label in zip(batch["input_ids"], batch["segments"], batch["labels"], strict=True):
            assert segments.tolist() == sorted(segments.tolist(), reverse=True)
            assert (ids[segments == 0] == data.pad_id).all()
            found.append((int(data.tokenizer.decode(ids[segments == 1]).split()[1]), int(label)))
    return sorted(found)


def test_an_epoch_and_its_validation_hold_every_sentence_once(tmp_path):
    data = ready(train=write(tmp_path), batch_size=9)
    trained, held = list(data.train_dataloader()), list(data.val_dataloader())
    assert told(data, trained + held) == [(n, n % 2) for n in range(30)]
    assert [len(batch["labels"]) for batch in trained] == [9, 9, 9] and len(told(data, held)) == 3
    for batches, count in ((trained, 27), (held, 3)):
        assert all(batch.keys() == {"input_ids", "segments", "labels", "indices"} for batch in batches)
        assert sorted(torch.cat([batch["indices"] for batch in batches]).tolist()) == list(range(count))


def test_indices_are_places_in_the_file(tmp_path):
    path = write(tmp_path)
    data = ready(train=path, validation=path, limit=10, batch_size=5)
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert [n for n, _ in told(data, [batch])] == sorted(batch["indices"].tolist())
    assert data.protocol()["train_records"] == 10 and data.protocol()["val_records"] == 30


def test_ranks_and_resumption(tmp_path):
    options = {"train": write(tmp_path), "batch_size": 4, "epoch_steps": 20}
    whole = [batch["indices"] for batch in ready(**options).train_dataloader()]
    parts = [ready(**options, rank=rank, world=2).train_dataloader() for rank in range(2)]
    assert all(
        torch.equal(torch.stack([part["indices"] for part in pair], 1).flatten(), expected)
        for *pair, expected in zip(*parts, whole, strict=True)
    )
    resumed = ready(**options).train_dataloader()
    resumed.load_state_dict({"next": 7})
    assert all(torch.equal(batch["indices"], one) for batch, one in zip(islice(resumed, 13), whole[7:], strict=True))


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tmp_path):
    tokenizer = byte_level(pad=None)
    assert ready(tokenizer, train=write(tmp_path)).pad_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no padding token and no EOS token; take one with pad_token"):
        ready(tokenizer, train=write(tmp_path))


@pytest.mark.parametrize(
    ("labels", "names"), [(("10", "2", "-1"), ["-1", "2", "10"]), (("yes", "10", "2"), ["10", "2", "yes"])]
)
def test_classes_are_those_of_the_whole_training_file(tmp_path, labels, names):
    path = write(tmp_path, labels=labels)
    assert ready(train=path, limit=1).class_names == names
    test = ready(train=path, test=write(tmp_path, "test.tsv", 3, labels), stage="test")
    assert test.class_names == names and "train" not in test._groups
    (batch,) = test.test_dataloader()
    assert [labels[n] for n in batch["indices"]] == [names[label] for label in batch["labels"]]


def test_pairs_go_through_the_tokenizers_own_form(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("index\tquestion\tsentence\tlabel\n" + "0\twhy\tso it is\tyes\n1\tis it\tno\tno\n" * 2)
    data = ready(paired(), train=str(path), validation=str(path), batch_size=2, max_length=7)
    for batch in data.val_dataloader():
        for ids, kinds, segments in zip(batch["input_ids"], batch["token_type_ids"], batch["segments"], strict=True):
            text = data.tokenizer.decode(ids[segments == 1])
            assert text.startswith("[CLS]") and text.count("[SEP]") == 2 and text.endswith("[SEP]")
            second = data.tokenizer.decode(ids[kinds == 1])
            assert second.endswith("[SEP]") and second.count("[SEP]") == 1
            assert not kinds[segments == 0].any() and segments.sum() <= 7
    assert "token_type_ids" not in next(iter(ready(paired(), train=write(tmp_path)).train_dataloader()))


def test_a_strange_label_is_named_by_line(tmp_path):
    train, test = write(tmp_path), write(tmp_path, "test.tsv", labels=("0", "1", "2"))
    with pytest.raises(UserError, match=f"^{test}:4: label 2 is none of {train}, which has 0, 1$"):
        ready(train=train, validation=test)
    with pytest.raises(UserError, match=f"^{test}:4: label 2"):
        ready(stage="test", train=train, test=test)
    with pytest.raises(UserError, match=f"^{train}: has only one label, 0; at least two are needed"):
        ready(train=write(tmp_path, labels=("0",)))
    with pytest.raises(UserError, match=r"data\.batch_size must be at least 1, got 0"):
        SentenceData(train, batch_size=0)
