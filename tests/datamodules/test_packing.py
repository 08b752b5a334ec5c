import logging
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from sinelr_lightning.datamodules.loaders import StepLoader
from sinelr_lightning.datamodules.packing import (
    GroupLoader,
    RowBatches,
    fit_samples,
    length_grouped,
    pack,
    padded,
    stack_rows,
)
from sinelr_lightning.datamodules.tokenization import Sample
from sinelr_lightning.errors import UserError

LENGTHS = np.random.RandomState(0).randint(3, 60, 500).tolist()


def sample(length, prompt=1, where="a:1", **choice):
    """Tokens 1, 2, 3, …, those after the prompt trained."""
    ids = np.arange(1, length + 1, dtype=np.int32)
    return Sample(where, ids, np.where(ids > prompt, ids, -100), **choice)


def flat(rows):
    return [number for row in rows for number in row]


@pytest.mark.parametrize("lengths", [LENGTHS, [64] * 3, [1], [40, 40, 24, 24, 64]])
def test_packed_rows_hold_every_sample_once_and_no_more_than_fits(lengths):
    rows = pack(lengths, 64, seed=1, epoch=0)
    assert sorted(flat(rows)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in row) <= 64 for row in rows)
    assert len(rows) <= 1.05 * -(-sum(lengths) // 64)


def test_packing_follows_from_seed_and_epoch_and_has_as_many_rows_each_time():
    plans = {(seed, epoch): pack(LENGTHS, 64, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len({len(rows) for rows in plans.values()}) == 1
    assert len({str(rows) for rows in plans.values()}) == 6
    assert pack(LENGTHS, 64, 1, 2) == plans[1, 2]
    together = [{frozenset(row) for row in plans[0, epoch]} for epoch in (0, 1)]
    assert len(together[0] & together[1]) < len(together[0]) / 10


@pytest.mark.parametrize("size", [1, 7, 8, 600])
def test_length_groups_hold_every_sample_once_an_epoch(size):
    plans = [length_grouped(LENGTHS, size, 3, epoch) for epoch in range(4)]
    assert all(sorted(flat(rows)) == list(range(500)) for rows in plans)
    assert plans[1] == length_grouped(LENGTHS, size, 3, 1) != plans[0] and plans[1] != length_grouped(
        LENGTHS, size, 4, 1
    )


def test_length_groups_need_little_padding_in_every_epoch():
    make = RowBatches(
        lambda epoch: length_grouped(LENGTHS, 8, 0, epoch), lambda rows: {"rows": torch.tensor(rows)}, 8
    )
    tokens = torch.tensor(LENGTHS)
    sizes = [tokens[make(step)["rows"].flatten()] for step in range(500)]
    wide = [size.max().item() - size.min().item() for size in sizes]
    assert sum(width > 10 for width in wide) <= 8  # where one epoch meets the next
    assert {len(size) for size in sizes} == {8} and len({size.max().item() for size in sizes[:10]}) > 4


def test_stacked_rows_are_padded_and_never_leak():
    batch = stack_rows([[sample(3), sample(4, prompt=0)], [sample(2)]], pad=9, length=8)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 1, 2, 3, 4, 9], [1, 2, *[9] * 6]]
    n = -100
    assert batch["labels"].tolist() == [[n, 2, 3, n, 2, 3, 4, n], [n, 2, *[n] * 6]]
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, *[0] * 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, *[0] * 6]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert stack_rows([[sample(3)], [sample(5)]], pad=0)["input_ids"].shape == (2, 5)
    assert padded([[1, 2], np.array([3])], 7).tolist() == [[1, 2], [3, 7]]


def test_no_trained_prediction_crosses_samples():
    samples = [sample(length, prompt=0) for length in LENGTHS]
    rows = [[samples[number] for number in row] for row in pack(LENGTHS, 64, 0, 0)]
    batch = stack_rows(rows, pad=0, length=64)
    trained = batch["labels"][:, 1:] != -100  # what the model predicts from the token before
    assert (batch["segments"][:, 1:] == batch["segments"][:, :-1])[trained].all()
    assert trained.sum() == sum(LENGTHS) - len(LENGTHS)  # all but the first of each
    assert (batch["input_ids"][:, 1:] == batch["labels"][:, 1:])[trained].all()


def batches(size=4, rank=0, world=1, seed=0):
    plan = lambda epoch: pack(LENGTHS[:50], 64, seed, epoch)  # noqa: E731
    return RowBatches(
        plan, lambda rows: {"first": torch.tensor([row[0] for row in rows]), "all": rows}, size, rank, world
    )


def test_batches_are_whole_and_go_through_the_data_epoch_by_epoch():
    make = batches()
    assert make.count % 4 and make.epoch_steps == -(-make.count // 4)
    rows = [row for step in range(make.count) for row in make(step)["all"]]  # four epochs
    assert len(rows) == 4 * make.count
    for epoch in range(4):
        assert sorted(flat(rows[epoch * make.count : (epoch + 1) * make.count])) == list(range(50))


def test_a_batch_may_be_larger_than_the_data():
    make = batches(size=64)
    assert make.epoch_steps == 1 and len(make(0)["all"]) == 64
    assert set(Counter(flat(make(0)["all"] + make(1)["all"])).values()) >= {128 // make.count}


def test_ranks_share_a_batch():
    whole = batches()(5)["first"]
    parts = [batches(rank=rank, world=2)(5)["first"] for rank in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(), whole)
    with pytest.raises(UserError, match="a batch of 4 cannot be shared evenly by 3"):
        batches(world=3)(0)


def test_a_run_goes_on_in_mid_epoch():
    expected = [batch["all"] for batch in StepLoader(batches(), 12)]
    first = StepLoader(batches(), 12)
    list(islice(first, 5))
    resumed = StepLoader(batches(), 12)
    resumed.load_state_dict(first.state_dict())
    assert [batch["all"] for batch in islice(resumed, 7)] == expected[5:]


@pytest.mark.parametrize(("world", "repeated"), [(1, 0), (2, 0), (3, 1), (4, 0)])
def test_each_sample_is_evaluated_on_one_rank_and_all_ranks_have_as_many_batches(world, repeated):
    loaders = [GroupLoader(list, LENGTHS[:11], 3, rank, world) for rank in range(world)]
    made = [list(loader) for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(mine) for mine in made} == {len(loaders[0])}
    again = [mine.pop() for mine in made if mine[-1] in mine[:-1]]
    assert len(again) == repeated
    assert sorted(flat(flat(made))) == list(range(11))
    for mine in made:
        assert all(len(batch) <= 3 for batch in mine)
        sizes = [LENGTHS[number] for number in flat(mine)]
        assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(UserError, match="2 samples cannot be evaluated by 3 processes"):
        GroupLoader(list, [4, 5], 3, 0, 3)


def test_too_long_samples(caplog):
    groups = [[sample(5)], [sample(9, where="a:2")], [sample(6), sample(12, where="a:3")], [sample(8, where="a:4")]]
    with pytest.raises(UserError) as error:
        fit_samples(groups, 8, "error")
    assert str(error.value) == (
        "a:2: has 9 tokens, more than data.max_length = 8; raise data.max_length, or set data.too_long to drop or "
        "truncate"
    )
    with caplog.at_level(logging.WARNING):
        assert fit_samples(groups, 8, "drop") == [groups[0], groups[3]]
        cut = fit_samples(groups, 8, "truncate")
        assert fit_samples(groups, 12, "error") == groups
    told = "2 of 4 samples longer than data.max_length = 8 tokens, the first: a:2 (9 tokens)"
    assert [record.getMessage() for record in caplog.records] == [f"left out {told}", f"cut {told}"]
    assert [[len(one.ids) for one in group] for group in cut] == [[5], [8], [6, 8], [8]]
    assert cut[1][0].labels.tolist() == sample(9).labels.tolist()[:8]


@pytest.mark.parametrize(
    ("group", "too_long", "words"),
    [
        (
            [sample(9, prompt=8)],
            "truncate",
            r"a:1: has 9 tokens, .* = 8, and no trained one among these; .* to drop$",
        ),
        (
            [sample(9, choice=0)],
            "truncate",
            r"a:1: has 9 tokens, .* set data.too_long to drop \(choices are not cut,",
        ),
        ([sample(9)], "drop", r"a:1 and all others are longer than data.max_length = 8; raise it"),
    ],
)
def test_too_long_samples_that_cannot_be_put_right(group, too_long, words):
    with pytest.raises(UserError, match=words):
        fit_samples([group], 8, too_long)
