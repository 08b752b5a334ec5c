"""`sinelr compare`: methods on one task under one budget, each at its own best learning rate, over seeds."""

import ctypes
import hashlib
import json
import logging
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from sinelr_lightning.comparison.plan import Case, Plan, Run, parsed_floats, parsed_ints
from sinelr_lightning.comparison.queue import Queue
from sinelr_lightning.errors import UserError, first_line
from sinelr_lightning.runs import versions

__all__ = ["compare"]

log = logging.getLogger(__name__)

_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up here: a fork must load nothing
_PR_SET_PDEATHSIG = 1


def compare(
    config: str,
    linear: str = "SineLowRank,LowRank,Dense",
    rank: str = "1,5",
    seeds: str = "3",
    lrs: str | None = None,
    metric: str | None = None,
    mode: str | None = None,
    steps: int | None = None,
    seconds: int | None = None,
    where: str = "model.linear",
    where_lr: str = "model.optimizer.lr",
    options: str = "",
    equal: Literal["ranks", "parameters"] = "ranks",
    out: str = "comparison",
    storage: str | None = None,
) -> None:
    """Compare layers on the task of a configuration: equal ranks or parameters, one budget, one sweep, seeds.

    Each method is trained at every learning rate with the first seed, then with all seeds at its best rate. Every run
    is a normal run in OUT/runs. Stopped, the same command goes on; given several times, also on several machines that
    share OUT, the processes share the work. OUT gets compare.md, compare.csv, compare.png and tensorboard/.

    Args:
        config: YAML file of a `sinelr fit`; its model may be any LightningModule.
        linear: Methods apart by commas: classes of layers, with arguments after colons as in
            SineLowRank:balanced=true. The verdicts are on the first one against the others.
        rank: Ranks apart by commas, for the methods that have one.
        seeds: Number of seeds, or the seeds themselves apart by commas.
        lrs: Learning rates apart by commas; by default a third of the configuration's, that one, and three times it.
        metric: What is compared, such as val/psnr; by default the model's `monitor`, by which a task chooses its best
            checkpoint.
        mode: max where more of it is better, min where less is; by default the model's `mode`.
        steps: Optimiser steps of each run; by default the configuration's.
        seconds: Time of each run instead of steps; a schedule then follows the share of it that is over.
        where: The setting that takes the layers; model.adapter for language models.
        where_lr: The setting that takes the learning rate.
        options: More options for each `sinelr fit`, as one string.
        equal: ranks, or parameters: the ranks are the first method's, each other method takes the largest rank of
            its own with no more parameters than that.
        out: Folder of the comparison.
        storage: Where the queue lives: an Optuna URL such as sqlite:///FILE.db or that of a database server; by
            default a journal file in OUT.
    """
    if steps is not None and seconds is not None:
        raise UserError("give steps or seconds, not both")
    if steps is not None and steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if seconds is not None and seconds < 1:
        raise UserError(f"seconds must be at least 1, got {seconds}")
    if mode not in (None, "max", "min"):
        raise UserError(f"mode must be max or min, got {mode!r}")
    settings = _read(config)
    if equal not in ("ranks", "parameters"):
        raise UserError(f"equal must be ranks or parameters, got {equal!r}")
    cases = _cases(linear, parsed_ints(rank, "rank"))
    metric, mode = _goal(settings, metric, mode)
    rates = parsed_floats(lrs, "lrs") if lrs else _around(settings, where_lr)
    numbers = _seeds(seeds)
    from sinelr_lightning.commands.equal_parameters import check_ranks, of_equal_parameters

    if equal == "parameters":
        cases = of_equal_parameters(cases, settings, where, options)
    else:
        check_ranks(cases, settings, where, options)
    plan = Plan(
        cases, rates, numbers, metric, mode, config, where, where_lr, steps, seconds, options, _digest(config)
    )
    from sinelr_lightning.comparison.report import write_report

    folder = Path(out)
    option = "--storage" if storage else "--out"
    queue = Queue(storage or str(folder / "queue.journal"), plan, folder / "claims", option)
    _work(queue, plan, folder)
    text = write_report(plan, queue.results(), queue.details(), folder)
    sys.stdout.write(f"{text}\n{folder}/compare.md, compare.csv, compare.png\n  tensorboard --logdir {folder}\n")


def _work(queue: Queue, plan: Plan, folder: Path) -> None:
    """Do runs until none is left."""
    before, began = len(queue.results()), time.monotonic()
    while (taken := queue.next()) is not None:
        run, ticket = taken
        done = len(queue.results())
        left = ""
        if done > before:
            each = (time.monotonic() - began) / (done - before)
            left = f", about {_clock(each * (plan.total() - done))} left"
        log.info("%s (%d of %d done%s)", run.name, done, plan.total(), left)
        try:
            with queue.working(ticket) as name_child:
                value, details = _train(run, plan, folder, name_child)
        except BaseException as stop:
            queue.give_back(ticket)
            if isinstance(stop, SystemExit):  # by SIGTERM
                log.info("stopped; the same command goes on")
            raise
        queue.done(ticket, value, details)


# --------------------------------------------------------------------------------------------------- what is asked


def _read(config: str) -> dict[str, Any]:
    path = Path(config)
    if not path.is_file():
        raise UserError(f"config {config} does not exist")
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{config} is not readable YAML: {error}") from error
    if not isinstance(settings, dict) or "class_path" not in (settings.get("model") or {}):
        raise UserError(f"{config} has no model.class_path: give the configuration of a sinelr fit")
    return settings


def _digest(config: str) -> str:
    return hashlib.sha256(Path(config).read_bytes()).hexdigest()


def _cases(linear: str, ranks: tuple[int, ...]) -> tuple[Case, ...]:
    methods = [name.strip() for name in linear.split(",") if name.strip()]
    if not methods or len(set(methods)) < len(methods):
        raise UserError(f"linear {linear!r}: name each method once")
    return tuple(Case(name, k) for name in methods for k in (ranks if _has_rank(name) else (None,)))


def _seeds(seeds: str) -> tuple[int, ...]:
    """The seeds that are listed, or the first so many."""
    numbers = parsed_ints(seeds, "seeds", least=0 if "," in seeds else 1)
    return numbers if "," in seeds else tuple(range(numbers[0]))


def _goal(settings: dict[str, Any], metric: str | None, mode: str | None) -> tuple[str, str]:
    """What is compared, and whether more of it is better."""
    model = _model(settings)
    own = getattr(model, "monitor", None)
    metric = metric or own
    if metric is None:
        raise UserError(f"metric: {model.__name__} names none as its `monitor`; say what it logs, such as val/loss")
    mode = mode or (getattr(model, "mode", None) if metric == own else None)
    if mode is None:
        raise UserError(f"mode: say whether more of {metric} is better (max) or less (min)")
    return metric, mode


def _has_rank(method: str) -> bool:
    """Whether this family takes a rank.

    Raises:
        UserError: there is no such family.
    """
    import dataclasses

    import sinelr_lightning.layers  # noqa: F401 (defines the families)
    from sinelr_lightning.cli import near
    from sinelr_lightning.layers.factory import LinearFactory, families

    known = families(LinearFactory)
    path, *arguments = method.split(":")
    if wrong := [word for word in arguments if not re.fullmatch(r"[A-Za-z]\w*=.+", word) or word.startswith("rank=")]:
        raise UserError(f"linear: {wrong[0]!r} in {method!r}: give name=value; ranks go to --rank")
    name = path.rsplit(".", 1)[-1]
    if name not in known:
        if "." in path:
            return True  # a class of the user's own, which the run will import
        raise UserError(f"linear: unknown method {path!r}{near(path, sorted(known))}")
    family = known[name]
    return dataclasses.is_dataclass(family) and "rank" in {field.name for field in dataclasses.fields(family)}


def _model(settings: dict[str, Any]) -> Any:
    """The class of the configuration's model, for its `monitor` and `mode`."""
    import importlib

    import sinelr_lightning.tasks as tasks

    path = settings["model"]["class_path"]
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module) if module else tasks, name)
    except Exception as error:  # whatever a module of the user's own may raise
        raise UserError(f"model.class_path {path} cannot be imported: {first_line(error)}") from error


def _around(settings: dict[str, Any], where_lr: str) -> tuple[float, ...]:
    lr: Any = settings
    for name in where_lr.split("."):
        lr = lr if isinstance(lr, dict) else {}
        lr = lr.get(name, (lr.get("init_args") or {}).get(name))
    try:
        middle = float(lr)
    except (TypeError, ValueError):
        middle = 0.0
    if not 0 < middle < math.inf:
        raise UserError(f"the configuration names no {where_lr} above 0: give --lrs 1e-3,3e-3,1e-2")
    return tuple(float(f"{middle * factor:.3g}") for factor in (1 / 3, 1, 3))


# ------------------------------------------------------------------------------------------------------ one run


def _train(
    run: Run, plan: Plan, folder: Path, name_child: Callable[[int], None]
) -> tuple[float | None, dict[str, Any]]:
    """Train in a process of its own, or go on where an earlier one was stopped; value and notes."""
    if _digest(plan.config) != plan.digest:
        raise UserError(f"{plan.config} has changed since the comparison began: put it back, or name another --out")
    home, log_file = folder / "runs" / run.name, folder / "logs" / f"{run.name}.log"
    sinelr = [sys.executable, "-m", "sinelr_lightning"]
    begun = versions(home)[:1]
    if not (begun and _finished(begun[0])):  # else its worker died before it could say so
        if begun and (begun[0] / "checkpoints" / "last.ckpt").is_file():
            wanted = ["--ckpt_path", str(begun[0])]
        else:
            wanted = _settings(run, plan, folder)
        if code := _logged([*sinelr, "fit", *wanted], log_file, name_child):
            return _died(run, code, home, log_file)
    version = versions(home)[0]
    fit = _metrics(version)["fit"]
    if (fit.get("last") or {}).get("step") != fit["steps"]:  # the budget ended between two validations
        last = version / "checkpoints" / "last.ckpt"
        if code := _logged([*sinelr, "validate", "--ckpt_path", str(last)], log_file, name_child):
            return _died(run, code, home, log_file)
    return _value(run, plan, version)


def _settings(run: Run, plan: Plan, folder: Path) -> list[str]:
    """Options of a fit that begins."""
    wanted = ["--config", plan.config, *run.case.options(plan.where)]
    wanted += [f"--{plan.where_lr}={run.lr!r}", f"--seed_everything={run.seed}"]
    if plan.steps is not None:
        wanted += [f"--trainer.max_steps={plan.steps}", "--trainer.max_epochs=-1"]
    if plan.seconds is not None:
        wanted += ["--trainer.max_steps=-1", "--trainer.max_epochs=-1"]
        wanted.append(f"--trainer.max_time={_days_to_seconds(plan.seconds)}")
    return [*wanted, f"--runs_dir={folder / 'runs'}", f"--name={run.name}", *shlex.split(plan.options)]


def _logged(command: list[str], log_file: Path, name_child: Callable[[int], None]) -> int:
    """Run a command, all that it says going into the file; its exit code. It does not outlive this one."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    die = _die_with_parent if _prctl else None
    with (
        log_file.open("a") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=die) as process,
    ):
        try:
            if die is None:
                name_child(process.pid)
            return process.wait()
        except BaseException:
            process.terminate()  # a fit saves before it ends
            process.wait()
            raise


def _die_with_parent() -> None:
    """Have the system kill this process when its parent is killed, which cannot do it itself."""
    assert _prctl is not None
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _metrics(version: Path) -> dict[str, Any]:
    return json.loads((version / "metrics.json").read_text())


def _finished(version: Path) -> bool:
    try:
        return "fit" in _metrics(version)
    except (OSError, ValueError):
        return False


def _died(run: Run, code: int, home: Path, log_file: Path) -> tuple[None, dict[str, Any]]:
    """A run that diverged counts as dead; one that could not begin, or was stopped, ends the comparison.

    Raises:
        UserError: it could not begin.
        KeyboardInterrupt: it was stopped.
    """
    if code in (130, 143, -2, -15):
        raise KeyboardInterrupt
    lines = log_file.read_text(errors="replace").strip().splitlines()
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    if re.search(r"loss (is|was) |not finite|collapsed|NaN", said) and list(home.glob("version_*")):
        log.warning("%s died: %s", run.name, said.removeprefix("error: "))
        return None, {"died": said}
    raise UserError(f"{run.name} failed with exit code {code}: {said.removeprefix('error: ')} (see {log_file})")


def _value(run: Run, plan: Plan, version: Path) -> tuple[float | None, dict[str, Any]]:
    metrics = _metrics(version)
    figures = metrics.get("validate") or metrics["fit"].get("last") or {}
    if plan.metric not in figures:
        numbers = [name for name, value in figures.items() if name != "step" and isinstance(value, int | float)]
        known = ", ".join(numbers) or "none"
        raise UserError(f"{run.name} logged no {plan.metric}; it logged {known}: take one of these as --metric")
    model = metrics.get("model", {})
    parameters = model.get("trained_parameters", model.get("parameters"))
    share = model.get("trained_share", model.get("compression"))
    value = figures[plan.metric]
    return (
        None if value is None or not math.isfinite(value) else float(value),
        {
            "parameters": None if parameters is None else int(parameters),
            "share": share,
            "seconds": metrics["fit"].get("seconds"),
            "folder": str(version),
        },
    )


def _days_to_seconds(seconds: int) -> str:
    """As Lightning takes a time: DD:HH:MM:SS."""
    return f"{seconds // 86400:02d}:{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
