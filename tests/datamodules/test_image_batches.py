import os
import signal
import time
from itertools import islice

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sinelr_lightning.datamodules.image_batches import (
    EvaluationBatches,
    ImageEvaluationLoader,
    ImageStepLoader,
    TrainingBatches,
    Workers,
)
from sinelr_lightning.errors import UserError


class Numbers:
    """Image i is grey i of class i mod 3; those in `broken` cannot be read."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def read(self, index):
        if index in self.broken:
            raise UserError(f"{index}.png: is broken")
        return Image.new("RGB", (2, 2), (index,) * 3), index % 3


def jitter(image):
    """A random change of the image: its grey plus up to 100."""
    return v2.functional.pil_to_tensor(image) + torch.randint(100, (1,)).to(torch.uint8)


def training(count=20, size=4, **options):
    return TrainingBatches(Numbers(count, options.pop("broken", ())), jitter, size, 7, **options)


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in ("images", "labels", "indices"))


def loader(steps=6, workers=0, **options):
    return ImageStepLoader(training(**options), steps, Workers(workers))


def test_an_epoch_is_a_permutation_and_each_one_another():
    batches = list(loader(10))
    first, second = (torch.cat([b["indices"] for b in part]) for part in (batches[:5], batches[5:]))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert not torch.equal(first, second) and first.tolist() != list(range(20))
    for batch in batches:
        assert batch["images"].shape == (4, 3, 2, 2) and batch["images"].dtype == torch.uint8
        assert torch.equal(batch["labels"], batch["indices"] % 3)
        change = batch["images"][:, 0, 0, 0].int() - batch["indices"]
        assert ((change >= 0) & (change < 100)).all()
    assert [batch["step"] for batch in batches] == list(range(10))


def test_the_last_partial_batch_of_an_epoch_is_dropped():
    make = training(count=11, size=4)
    assert make.epoch_steps == 2
    seen = [torch.cat([make(2 * epoch)["indices"], make(2 * epoch + 1)["indices"]]).tolist() for epoch in range(20)]
    assert all(len(set(epoch)) == 8 for epoch in seen)
    assert {index for epoch in seen for index in epoch} == set(range(11))


def test_changes_follow_from_seed_epoch_and_index_alone():
    def changes(batches):
        return {
            (batch["step"] // 5, int(index)): int(image[0, 0, 0]) - int(index)
            for batch in batches
            for index, image in zip(batch["indices"], batch["images"], strict=True)
        }

    whole = changes(map(training(size=4), range(10)))
    assert changes(map(training(size=2), range(0))) == {}
    halves = {}
    for rank in range(2):
        halves |= changes(map(training(size=4, rank=rank, world=2), range(10)))
    assert halves == whole and len(whole) == 40
    assert len(set(whole.values())) > 20
    assert {k: v for k, v in whole.items() if k[0] == 0}.values() != {k: v for k, v in whole.items() if k[0]}.values()


def test_ranks_share_a_batch():
    whole = training()(3)
    parts = [training(rank=rank, world=2)(3)["indices"] for rank in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(), whole["indices"])
    with pytest.raises(UserError, match="a batch of 4 cannot be shared evenly by 3"):
        training(rank=0, world=3)(0)


def test_workers_change_nothing_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    alone = list(loader(7))
    drawn = torch.rand(2)
    torch.manual_seed(3)
    helped = list(loader(7, workers=2))
    assert torch.equal(torch.rand(2), drawn)
    assert all(equal(*pair) for pair in zip(alone, helped, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_in_mid_epoch_whatever_the_workers_prepared(workers):
    expected = list(loader(12))
    first = loader(12, workers)
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    state = first.state_dict()
    assert state == {"next": 3}
    resumed = loader(12, workers)
    resumed.load_state_dict(state)
    for batch, other in zip(islice(resumed, 9), expected[3:], strict=True):
        assert equal(batch, other)
    assert resumed.state_dict()["next"] == 12


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_also_from_a_worker(workers):
    with pytest.raises(UserError) as error:
        list(loader(5, workers, broken=(6,)))
    assert str(error.value) == "6.png: is broken"


@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_images_are_left_out_and_reported(workers):
    told = []
    made = ImageStepLoader(training(broken=(6, 9), skip=True), 5, Workers(workers, report=told.extend))
    seen = torch.cat([batch["indices"] for batch in made]).tolist()
    assert sorted(seen) == [index for index in range(20) if index not in (6, 9)]
    assert sorted(told) == ["6.png: is broken", "9.png: is broken"]
    with pytest.raises(UserError, match=r"no image of a whole batch can be read; the first: \d+.png: is broken"):
        training(broken=range(20), skip=True)(0)


def evaluation(count, rank=0, world=1, size=3, workers=0, **options):
    make = EvaluationBatches(Numbers(count, options.pop("broken", ())), v2.functional.pil_to_tensor, **options)
    return ImageEvaluationLoader(make, size, Workers(workers), rank, world)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_evaluated_once_on_one_rank(world, workers):
    parts = []
    for rank in range(world):
        made = evaluation(11, rank, world, workers=workers)
        batches = list(made)
        assert len(batches) == len(made)
        indices = torch.cat([batch["indices"] for batch in batches]).tolist()
        assert indices == list(range(rank, 11, world))
        for batch in batches:
            assert torch.equal(batch["images"][:, 0, 0, 0].long(), batch["indices"])
            assert torch.equal(batch["labels"], batch["indices"] % 3) and "step" not in batch
        parts += indices
    assert sorted(parts) == list(range(11))


def test_evaluation_leaves_out_what_cannot_be_read():
    made = evaluation(7, skip=True, broken=(1, 6))
    assert [batch["indices"].tolist() for batch in made] == [[0, 2], [3, 4, 5]]
    with pytest.raises(UserError, match=r"^1\.png: is broken$"):
        list(evaluation(7, broken=(1, 6)))
    with pytest.raises(UserError, match="2 samples cannot be evaluated by 3 processes"):
        evaluation(2, 0, 3)


def test_paths_come_with_the_images(tmp_path):
    made = evaluation(3, path_of=lambda index: tmp_path / f"{index}.png", skip=True, broken=(1,))
    (batch,) = made
    assert batch["paths"] == [f"{tmp_path}/0.png", f"{tmp_path}/2.png"]


class Struck(Numbers):
    """A group-wide signal reaches the worker while it reads; here it sends it to itself."""

    def read(self, index):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        time.sleep(0.05)
        return super().read(index)


def test_workers_leave_signals_to_the_main_process():
    make = EvaluationBatches(Struck(4), v2.functional.pil_to_tensor)
    assert [len(batch["indices"]) for batch in ImageEvaluationLoader(make, 2, Workers(1))] == [2, 2]


def test_the_parent_can_end_a_worker():
    iterator = iter(Workers(1)._loader(training(), range(50)))
    next(iterator)
    (worker,) = iterator._workers
    worker.terminate()  # what multiprocessing does at the interpreter's end; it then waits for the worker
    worker.join(10)
    assert worker.exitcode == 0
