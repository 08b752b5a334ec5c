"""What PhaseMonitor costs: the time of one look over that of the steps between two, on the tasks as configured.

    PYTHONPATH=benchmarks python benchmarks/phase_monitor.py configs/nerf_llff.yaml configs/classification_digits.yaml

Prints a row for each configuration. Steps and looks are timed within one run; the median counts.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as L
from timing import markdown

from sinelr_lightning.callbacks import PhaseMonitor
from sinelr_lightning.cli import main as sinelr


class Timed(PhaseMonitor):
    """Notes how long each look takes, and each step without it."""

    looks: ClassVar[list[float]] = []
    steps: ClassVar[list[float]] = []

    def __init__(self) -> None:
        super().__init__(every=5)
        self._began = self._looked = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._began, self._looked = time.perf_counter(), 0.0

    def on_before_optimizer_step(self, trainer: L.Trainer, *rest: Any) -> None:
        before = time.perf_counter()
        super().on_before_optimizer_step(trainer, *rest)
        self._looked = time.perf_counter() - before
        if trainer.global_step % self.every == 0:
            self.looks.append(self._looked)

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(time.perf_counter() - self._began - self._looked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    import phase_monitor  # the module that the command line imports, with lists of its own

    timed, rows, every = phase_monitor.Timed, [], PhaseMonitor().every
    for config in args.configs:
        timed.looks.clear()
        timed.steps.clear()
        with tempfile.TemporaryDirectory() as folder:
            settings = [f"--trainer.max_steps={args.steps}", "--trainer.limit_val_batches=0", f"--runs_dir={folder}"]
            sinelr(["fit", "--config", str(config), *settings, "--trainer.callbacks+=phase_monitor.Timed"])
        look, step = statistics.median(timed.looks[1:]), statistics.median(timed.steps[5:])
        rows.append([config.stem, f"{1e3 * look:.1f}", f"{1e3 * step:.0f}", f"{look / (every * step):.2%}"])
    print(markdown(["configuration", "a look, ms", "a step, ms", f"cost at one look in {every} steps"], rows))


if __name__ == "__main__":
    main()
