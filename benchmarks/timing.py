"""Timing that the benchmarks share: layers take turns, the fastest turn of each counts."""

import platform
import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Setting:
    """Where and how long to measure."""

    device: str
    autocast: bool
    seconds: float
    turns: int = 15

    def precision(self) -> torch.autocast | nullcontext:
        return torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext()


def fastest(runs: Mapping[str, Callable[[], object]], setting: Setting) -> dict[str, float]:
    """Milliseconds of the fastest turn of each run; every turn takes the runs in a new order."""
    best = dict.fromkeys(runs, float("inf"))
    order, shuffle = list(runs), random.Random(0).shuffle
    start = time.perf_counter()
    for turn in range(setting.turns + 1):
        shuffle(order)
        for name in order:
            wait(setting)
            before = time.perf_counter()
            runs[name]()
            wait(setting)
            if turn:  # the first one warms up
                best[name] = min(best[name], 1e3 * (time.perf_counter() - before))
        if turn >= 3 and time.perf_counter() - start > setting.seconds:
            break
    return best


def wait(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    return f"## {title}\n\n{markdown(columns, rows)}"


def peak(run: Callable[[], None]) -> float:
    """MB of device memory that a step takes above what lay there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def machine(setting: Setting) -> str:
    if setting.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        name = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
        )
        name += f" ({torch.backends.cpu.get_cpu_capability()})"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, fastest of {setting.turns} turns\n"
