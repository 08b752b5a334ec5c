from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch

from sinelr_lightning.datamodules import DigitsData
from sinelr_lightning.datamodules.loaders import (
    EvaluationLoader,
    StepLoader,
    seeded_generator,
    share,
    training_inputs,
)
from sinelr_lightning.errors import UserError


def test_batches_are_numbered_over_all_epochs():
    loader = StepLoader(lambda number: number, steps=3)
    assert len(loader) == 3
    assert [list(loader), list(loader)] == [[0, 1, 2], [3, 4, 5]]


def test_the_state_is_the_next_number_and_goes_on_with_exactly_it():
    first = StepLoader(lambda number: number, steps=5)
    iterator = iter(first)
    assert [next(iterator), next(iterator)] == [0, 1]
    resumed = StepLoader(lambda number: number, steps=5)
    resumed.load_state_dict(first.state_dict())
    assert next(iter(resumed)) == 2


def test_an_iterator_that_is_made_and_dropped_takes_no_batch():
    loader = StepLoader(lambda number: number, steps=3)
    iter(loader)
    assert list(loader) == [0, 1, 2]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_sample_is_evaluated_on_exactly_one_rank(world):
    shares = [list(EvaluationLoader(lambda number: number, 5, rank, world)) for rank in range(world)]
    assert sorted(number for part in shares for number in part) == [0, 1, 2, 3, 4]
    assert [len(EvaluationLoader(int, 5, rank, world)) for rank in range(world)] == [len(part) for part in shares]


def test_a_rank_without_a_sample_is_refused():
    with pytest.raises(UserError, match=r"2 samples cannot be evaluated by 3 processes.*at most 2"):
        EvaluationLoader(int, 2, 0, 3)
    with pytest.raises(UserError, match="no sample to evaluate"):
        EvaluationLoader(int, 0)
    with pytest.raises(UserError, match=r"data\.epoch_steps must be at least 1 training step, got 0"):
        StepLoader(int, 0)


def test_generators_differ_by_seed_and_number_and_by_nothing_else():
    draws = {pair: torch.rand(4, generator=seeded_generator(*pair)) for pair in [(0, 1), (1, 0), (0, 0), (3, -2)]}
    for pair, draw in draws.items():
        assert torch.equal(draw, torch.rand(4, generator=seeded_generator(*pair)))
        assert not any(torch.equal(draw, other) for key, other in draws.items() if key != pair)


def test_shares_interleave_and_must_be_even():
    rows = torch.arange(4)
    assert share(rows, rank=1, world=2).tolist() == [1, 3]
    with pytest.raises(UserError, match="a batch of 4 cannot be shared evenly by 3"):
        share(rows, 0, 3)


def test_training_inputs_are_whole_and_the_same_on_every_rank():
    data = DigitsData(batch_size=8)
    data.setup("fit")
    alone = training_inputs(data, 2)
    assert [images.shape for images in alone] == [(8, 3, 8, 8)] * 2 and abs(alone[0].mean()) < 0.5  # normalised
    data.trainer = SimpleNamespace(global_rank=1, world_size=2)
    assert all(torch.equal(one, other) for one, other in zip(alone, training_inputs(data, 2), strict=True))
    assert data.trainer.world_size == 2


class Shuffled(L.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(64.0), batch_size=8, shuffle=True)


def test_training_inputs_are_the_same_for_every_seed_and_leave_it_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = training_inputs(Shuffled(), 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, training_inputs(Shuffled(), 2), strict=True))


def test_a_mapping_without_an_input_is_named():
    data = L.LightningDataModule.from_datasets(train_dataset=[{"labels": 1}])
    with pytest.raises(UserError, match="no floating-point tensor among labels"):
        training_inputs(data, 1)
