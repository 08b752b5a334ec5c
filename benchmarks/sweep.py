"""What the quality benchmarks share: one budget and one sweep of learning rates for every method, seeds, a plot.

Each case (method, rank) runs on the first seed at every rate of a geometric sweep. Where the best rate is the sweep's
first or last, that case's sweep goes on in the same ratio until it is not, at most three rates further, by the same
rule for all. The other seeds then run at the best rate. Reports are kept run by run: an interrupted benchmark goes on
where it was.
"""

import json
import logging
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import markdown

from sinelr_lightning.files import atomic_path
from sinelr_lightning.layers import Dense, LinearFactory, LowRank, SineLowRank, summarize

RESULTS = Path(__file__).parent / "results"
METHODS: dict[str, Callable[[int], LinearFactory]] = {
    "low rank": LowRank,
    "sine": SineLowRank,  # phases start with a spread of 2 rad, as in the paper
    "sine, 6 rad": lambda rank: SineLowRank(rank, phase_spread=6.0),
}
EXTENSIONS = 3  # rates at most that a sweep is longer by

Case = tuple[str, int]
Run = tuple[str, int, float, int]


def factory(method: str, rank: int) -> LinearFactory:
    return Dense() if method == "dense" else METHODS[method](rank)


def cases_of(ranks: list[int], methods: Iterable[str] = ("low rank", "sine")) -> list[Case]:
    return [("dense", 0), *((method, rank) for method in methods for rank in ranks)]


@dataclass
class Sweep:
    """The runs of one benchmark, kept in `path`.

    Args:
        path: JSON file of the report.
        setting: what all runs have in common; a stored report with another setting is refused.
        metric: the score that the learning rate is chosen by, larger is better.
    """

    path: Path
    setting: dict[str, Any]
    metric: str

    def __post_init__(self) -> None:
        self.report: dict[str, Any] = {"setting": self.setting, "torch": torch.__version__, "runs": []}
        if self.path.exists():
            stored = json.loads(self.path.read_text())
            if stored["setting"] != self.setting:
                sys.exit(f"{self.path} was made with other settings ({stored['setting']}): move it away first")
            self.report = stored

    def save(self) -> None:
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self.report, indent=1) + "\n")

    def work(self, run: Callable[[Run], dict[str, Any]], cases: list[Case], lrs: list[float], seeds: int, jobs: int):
        """Run what is missing. `run` gives `{metric: …}` of (method, rank, learning rate, seed)."""
        self._run(run, lambda: [one for case in cases for one in self._next(case, lrs, seeds)], jobs)

    def grid(self, run: Callable[[Run], dict[str, Any]], cases: list[Case], lrs: list[float], seeds: int, jobs: int):
        """Run what is missing of every case at every rate with every seed, all cases of a seed before the next."""
        wanted = [(*case, lr, seed) for seed in range(seeds) for case in cases for lr in lrs]
        self._run(run, lambda: wanted, jobs)

    def best_lr(self, case: Case) -> float:
        # Of equal scores the smaller rate, whichever run ended first.
        return max(
            self._first_seed(case),
            key=lambda r: (r[self.metric] if math.isfinite(r[self.metric]) else -math.inf, -r["lr"]),
        )["lr"]

    def chosen(self, case: Case) -> list[dict[str, Any]]:
        """The runs of all seeds at the best rate."""
        return [r for r in self.report["runs"] if (r["method"], r["rank"], r["lr"]) == (*case, self.best_lr(case))]

    def swept(self, case: Case, lrs: list[float]) -> bool:
        """Whether the sweep of a case has come to its best rate."""
        return not self._next(case, lrs, seeds=1)

    def rates(self) -> list[float]:
        """All learning rates that were tried."""
        return sorted({r["lr"] for r in self.report["runs"]})

    def mean(self, case: Case, name: str) -> tuple[float, float]:
        """Mean and standard deviation of a score over the seeds."""
        values = [r[name] for r in self.chosen(case)]
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def _first_seed(self, case: Case) -> list[dict[str, Any]]:
        return [r for r in self.report["runs"] if (r["method"], r["rank"], r["seed"]) == (*case, 0)]

    def _next(self, case: Case, lrs: list[float], seeds: int) -> list[Run]:
        """What a case runs after what it has run: the sweep, one rate beyond its edge, or the other seeds."""
        tried = {r["lr"] for r in self._first_seed(case)}
        rates = [lr for lr in lrs if lr not in tried]
        beyond = [lr for lr in tried if not min(lrs) <= lr <= max(lrs)]
        if not rates and len(beyond) < EXTENSIONS and (lr := self._beyond_the_edge(case)) is not None:
            rates = [lr]
        if rates:
            return [(*case, lr, 0) for lr in rates]
        return [(*case, self.best_lr(case), seed) for seed in range(1, seeds)]

    def _beyond_the_edge(self, case: Case) -> float | None:
        rates = sorted(r["lr"] for r in self._first_seed(case))
        best, ratio = self.best_lr(case), rates[1] / rates[0] if len(rates) > 1 else 2.0
        if best == rates[-1]:
            return float(f"{best * ratio:.3g}")
        return float(f"{best / ratio:.3g}") if best == rates[0] else None

    def _run(self, run: Callable[[Run], dict[str, Any]], wanted: Callable[[], list[Run]], jobs: int) -> None:
        """Run what `wanted` names and the report lacks, asking again after each run; no case waits for another."""
        running: dict[Future[dict[str, Any]], Run] = {}
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            while True:
                known = {(r["method"], r["rank"], r["lr"], r["seed"]) for r in self.report["runs"]}
                known.update(running.values())
                missing = [one for one in wanted() if one not in known]
                running |= {pool.submit(run, one): one for one in missing[: jobs - len(running)]}
                if not running:
                    return
                ended = wait(running, return_when=FIRST_COMPLETED).done
                if any(future.exception() for future in ended):
                    ended = wait(running).done  # what the others came to is kept before the error is shown
                for future in sorted(ended, key=lambda future: future.exception() is not None):
                    method, rank, lr, seed = running.pop(future)
                    result = {"method": method, "rank": rank, "lr": lr, "seed": seed, **future.result()}
                    self.report["runs"].append(result)
                    self.save()
                    print(json.dumps(result), flush=True)

    def table(
        self, cases: list[Case], make: Callable[[Case], torch.nn.Module], scores: dict[str, Callable[[Case], str]]
    ) -> str:
        """Size, scores by column, best rate and step time of each case."""
        rows = []
        for case in cases:
            size, (method, rank) = summarize(make(case)), case
            rows.append([method, str(rank or "–"), f"{size.parameters:,}", f"{size.compression:.1%}"])
            rows[-1] += [score(case) for score in scores.values()]
            rows[-1] += [f"{self.best_lr(case):g}", f"{self.report['step_ms'][f'{method} {rank}']:.1f}"]
        return markdown(["method", "rank", "parameters", "of dense", *scores, "best lr", "ms/step"], rows)

    def publish(self, head: str, table: str) -> None:
        """Write the table below what it is of, beside the report, and show it."""
        text = f"{head}\n{table}"
        with atomic_path(self.path.with_suffix(".md")) as temporary:
            temporary.write_text(text)
        print(text)

    def plot(
        self,
        cases: list[Case],
        make: Callable[[Case], torch.nn.Module],
        title: str,
        label: str,
        metric: str = "",
    ) -> None:
        """A metric over the parameters, by default that of the sweep, beside the report."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        parameters = {case: summarize(make(case)).parameters for case in cases}
        figure, axes = plt.subplots(figsize=(6, 4), dpi=150)
        for method in dict.fromkeys(m for m, _ in cases):
            own = [case for case in cases if case[0] == method]
            means, spreads = zip(*(self.mean(case, metric or self.metric) for case in own), strict=True)
            axes.errorbar([parameters[case] for case in own], means, spreads, marker="o", capsize=3, label=method)
        axes.set(xscale="log", xlabel="parameters", ylabel=label, title=title)
        for case in cases:
            if case[0] == "sine":  # the low rank beside it has as many parameters
                place = (parameters[case], 0.02)
                axes.annotate(f"k={case[1]}", place, xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        with atomic_path(self.path.with_suffix(".png")) as temporary:
            figure.savefig(temporary)


@contextmanager
def bare_trainer(steps: int, device: str, callbacks: Iterable[Any] = ()) -> Generator[Any]:
    """A Trainer with nothing beside the training, in a folder that goes away."""
    import lightning.pytorch as L

    with tempfile.TemporaryDirectory() as folder:
        yield L.Trainer(
            max_steps=steps,
            accelerator="gpu" if device == "cuda" else "cpu",
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            callbacks=list(callbacks),
        )


def train(
    task: Any, data: Any, steps: int, device: str, names: Iterable[str], test: str = "", callbacks: Iterable[Any] = ()
) -> dict[str, float]:
    """Train with nothing beside it; give the seconds and, of the validation at the end, the scores `val/NAME`.

    `test` names a score that is measured on the test data afterwards, and given as `test_NAME`.
    """
    with bare_trainer(steps, device, callbacks) as trainer:
        began = time.perf_counter()
        trainer.fit(task, data)
        seconds = time.perf_counter() - began
        scores = {name: float(trainer.callback_metrics[f"val/{name}"]) for name in names}
        if test:
            (tested,) = trainer.test(task, data, verbose=False)
            scores[f"test_{test}"] = tested[f"test/{test}"]
    return {"seconds": seconds, **scores}


def settle(seed: int, device: str) -> None:
    """Seed everything; on the CPU take one thread, so that runs side by side do not hinder each other."""
    import lightning.pytorch as L

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if device == "cpu":
        torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
