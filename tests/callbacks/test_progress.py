import io
import re

import lightning.pytorch as L
import pytest
from rich.console import Console
from toy import ToyData, ToyTask

from sinelr_lightning.callbacks import Progress
from sinelr_lightning.callbacks.progress import duration


class Clock:
    """One second a look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def run(progress, folder, steps=20):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False, max_steps=steps,
        default_root_dir=folder, callbacks=[progress],
    )  # fmt: skip
    trainer.fit(ToyTask(), ToyData())
    return trainer


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (83.4, "1:23"), (3725, "1:02:05")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_log_gets_a_plain_line_now_and_then(tmp_path):
    progress = Progress(seconds=10)
    progress.console, progress.clock = Console(file=io.StringIO(), force_terminal=False, width=20), Clock()
    run(progress, tmp_path)
    lines = progress.console.file.getvalue().splitlines()
    assert 3 <= len(lines) <= 12, lines
    steps = [line for line in lines if line.startswith("step")]
    assert all(re.match(r"step \d+/20  loss [\d.e-]+", line) for line in steps)
    assert re.match(r"step 20/20  loss \S+  val/error \S+  \S+ it/s  took \d+:\d\d$", lines[-1])
    assert any(re.search(r"it/s  \d+:\d\d left$", line) for line in steps)


def test_the_time_left_is_that_of_the_whole_run(tmp_path):
    progress = Progress()
    progress.console, progress.clock = Console(file=io.StringIO()), lambda: progress.now
    progress.now = 0.0
    trainer = run(progress, tmp_path, steps=10)
    # 10 of 40 steps took 20 s: 30 to go at 0.5 it/s are 60 s, although the epoch of 10 is over.
    progress._began, progress._first_step, progress._total, progress.now = 0.0, 0, 40.0, 20.0
    assert progress.line(trainer, trainer.lightning_module).endswith("0.5 it/s  1:00 left")
    # Resumed at step 5: only what this session did counts.
    progress._first_step = 5
    assert progress.line(trainer, trainer.lightning_module).endswith("0.25 it/s  2:00 left")


def test_other_ranks_are_silent(tmp_path):
    progress = Progress(seconds=0)
    progress.console = Console(file=io.StringIO())
    progress.disable()
    run(progress, tmp_path)
    assert progress.console.file.getvalue() == ""


def test_a_terminal_gets_a_bar(tmp_path):
    progress = Progress()
    progress.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress.clock = Clock()
    run(progress, tmp_path)
    text = progress.console.file.getvalue()
    assert "training" in text and "step 20/20" in text
    assert progress._bar is None, "the terminal is given back"
