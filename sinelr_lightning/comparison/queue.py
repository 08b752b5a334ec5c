"""A queue of runs in Optuna's storage, from which several processes or machines take."""

import itertools
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sinelr_lightning.comparison.plan import Plan, Run
from sinelr_lightning.errors import UserError, first_line
from sinelr_lightning.files import atomic_path

__all__ = ["Queue"]

_BEAT = 15.0  # seconds between two signs of life
_TRIES = 4  # to open a database
_SILENT = 120.0  # seconds without one after which a run is taken from its worker

Trial = Any


class Queue:
    """The runs of one comparison as trials of one Optuna study; each is done once, whoever asks.

    A worker that begins a run gives a sign of life every 15 seconds. A run whose worker is silent for two minutes, or
    whose process is gone from this machine, is handed out again. Which trial does a run is settled by a file in
    `claims` that only one can make: workers that look at the same moment may each put it into the queue. A file that
    names a trial of another study, the queue's before it was deleted for one, counts for nothing.

    Args:
        storage: an Optuna URL (sqlite:///FILE.db, postgresql://…), or a file for Optuna's journal.
        plan: what the runs are of; a study of another plan is refused.
        claims: folder of those files, which all workers share; a file in it says what plan they are of.
        option: what names another storage, for the refusal.

    Raises:
        UserError: Optuna is missing, the storage cannot be opened, or it holds another comparison.
    """

    def __init__(self, storage: str, plan: Plan, claims: Path, option: str = "--storage") -> None:
        self.plan, self.claims = plan, claims
        self.optuna = _optuna()
        self.study = self._open(storage)
        described = json.dumps(plan.describe(), sort_keys=True)
        noted = claims / "plan.json"  # a new storage knows nothing of the runs that are there
        stored = [
            (option, _public(storage), self.study.user_attrs.get("plan")),
            ("--out", str(claims.parent), noted.read_text() if noted.is_file() else None),
        ]
        _refuse_others(described, stored)
        self.study.set_user_attr("plan", described)
        with atomic_path(noted) as temporary:
            temporary.write_text(described)

    def _open(self, storage: str) -> Any:
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        for left in reversed(range(_TRIES)):
            try:
                return self.optuna.create_study(
                    storage=self._storage(storage), study_name="compare", load_if_exists=True
                )
            except Exception as error:
                # Workers that begin together make the tables of a new database at once, and one of them fails.
                if left and isinstance(error, self._database_errors()):
                    time.sleep(1 / (1 + left))
                    continue
                raise UserError(
                    f"storage {_public(storage)} cannot be opened ({_public(first_line(error))}); give a URL such as "
                    "sqlite:///FILE.db, or a file for Optuna's journal"
                ) from error

    def _storage(self, storage: str) -> Any:
        if "://" in storage:
            return self.optuna.storages.RDBStorage(storage)
        from optuna.storages.journal import JournalFileBackend

        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        return self.optuna.storages.JournalStorage(JournalFileBackend(storage))

    def _database_errors(self) -> tuple[type[Exception], ...]:
        from sqlalchemy.exc import IntegrityError, OperationalError

        return IntegrityError, OperationalError, self.optuna.exceptions.StorageInternalError

    # -- what is there -----------------------------------------------------------------------------------------------
    def results(self) -> dict[str, float | None]:
        """Run name → value of each that is done; None for a run that died."""
        return {
            trial.user_attrs["run"]: trial.user_attrs.get("value")
            for trial in self._first()
            if trial.state == self.optuna.trial.TrialState.COMPLETE
        }

    def details(self) -> dict[str, dict[str, Any]]:
        """Run name → what its worker noted besides."""
        return {trial.user_attrs["run"]: trial.user_attrs.get("details", {}) for trial in self._first()}

    def _first(self) -> list[Trial]:
        """Of each run the trial that counts."""
        first: dict[str, Trial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if "run" in trial.user_attrs and trial.state != self.optuna.trial.TrialState.FAIL:
                first.setdefault(trial.user_attrs["run"], trial)
        return list(first.values())

    # -- taking one --------------------------------------------------------------------------------------------------
    def next(self, wait: float = 2.0) -> tuple[Run, Trial] | None:
        """The next run, and its ticket for `working`, `done` and `give_back`; None once all are done.

        While the only runs left are in others' hands it waits.
        """
        states = self.optuna.trial.TrialState
        while True:
            self._take_back()
            wanted = {run.name: run for run in self.plan.wanted(self.results())}
            known = {trial.user_attrs["run"]: trial for trial in self._first()}
            new = [name for name in wanted if name not in known]
            for name in new:
                self.study.enqueue_trial({}, user_attrs={"run": name, "id": uuid.uuid4().hex})
            if new or any(trial.state == states.WAITING for trial in known.values()):
                trial = self.study.ask()
                name = trial.user_attrs.get("run")
                if name in wanted and self._claim(trial):
                    self._beat(trial)
                    return wanted[name], trial
                self.give_back(trial)  # a run that another trial does
                continue
            if all(known[name].state == states.COMPLETE for name in wanted) and len(wanted) == self.plan.total():
                return None
            time.sleep(wait)

    def _claim(self, trial: Trial) -> bool:
        """Whether this trial is the one that does its run; those that gave it up do not count."""
        self.claims.mkdir(parents=True, exist_ok=True)
        mine = self.claims / f".{socket.gethostname()}-{os.getpid()}"
        mine.write_text(trial.user_attrs["id"])
        try:
            for attempt in itertools.count():
                claim = self.claims / f"{trial.user_attrs['run']}.{attempt}"
                try:
                    os.link(mine, claim)  # fails where it exists, and is never seen half written
                    return True
                except FileExistsError:
                    if self._lives(claim.read_text()):
                        return False
        finally:
            mine.unlink()
        return False

    def _lives(self, identity: str) -> bool:
        """Whether a trial of this study is of that identity, and was not given up."""
        failed = self.optuna.trial.TrialState.FAIL
        trials = self.study.get_trials(deepcopy=False)  # now: a claim that is just made is of a trial just made
        return any(t.user_attrs.get("id") == identity and t.state != failed for t in trials)

    def _take_back(self) -> None:
        for trial in self._first():
            if trial.state != self.optuna.trial.TrialState.RUNNING:
                continue
            began = trial.datetime_start.timestamp()
            if not _lost(trial.user_attrs.get("worker") or {"host": "", "process": 0, "seen": began}):
                continue
            self.give_back(trial.number)

    def _beat(self, trial: Trial, child: int | None = None) -> None:
        worker = {"host": socket.gethostname(), "process": os.getpid(), "child": child, "seen": time.time()}
        with suppress(self.optuna.exceptions.UpdateFinishedTrialError):  # taken for lost
            trial.set_user_attr("worker", worker)

    @contextmanager
    def working(self, trial: Trial) -> Generator[Callable[[int], None]]:
        """Give signs of life until the block ends.

        The block gets a function to name the process that does its work, where that one may outlive this one: the run
        is handed out again once both are gone.
        """
        over = threading.Event()
        child: int | None = None

        def beat() -> None:
            while not over.wait(_BEAT):
                self._beat(trial, child)

        def name_child(process: int) -> None:
            nonlocal child
            child = process
            self._beat(trial, child)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield name_child
        finally:
            over.set()
            thread.join()

    def done(self, trial: Trial, value: float | None, details: dict[str, Any]) -> None:
        """Note what a run came to; None for one that died."""
        with suppress(ValueError, self.optuna.exceptions.UpdateFinishedTrialError):  # taken for lost: others do it
            trial.set_user_attr("value", value)
            trial.set_user_attr("details", details)
            self.study.tell(trial, 0.0 if value is None else value)

    def give_back(self, trial: Trial | int) -> None:
        """Let somebody else do it."""
        with suppress(ValueError):  # another worker was faster
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)


def _refuse_others(described: str, stored: list[tuple[str, str, str | None]]) -> None:
    """Refuse to go on with what another plan began.

    Args:
        described: this plan.
        stored: of each place the option that names it, its name, and the plan that it holds.
    """
    others = [(option, place, plan) for option, place, plan in stored if plan is not None and plan != described]
    if not others:
        return
    _, place, plan = others[0]
    before, now = json.loads(plan), json.loads(described)
    key = next(key for key in now if before.get(key) != now[key])
    another = " and another ".join(dict.fromkeys(option for option, _, _ in others))
    if key == "digest":
        raise UserError(
            f"{now['config']} has changed since {place} began with it: name another {another}, or put it back"
        )
    raise UserError(
        f"{place} holds another comparison: {key} is {now[key]} here and {before.get(key)} there; name another "
        f"{another}, or give the same options"
    )


def _lost(worker: dict[str, Any]) -> bool:
    """Whether a worker gives no sign of life any more, and has left nobody who does its work."""
    here = worker["host"] == socket.gethostname()
    child = worker.get("child")
    if here and child is not None and _runs(child):
        return False
    if time.time() - worker["seen"] > _SILENT:
        return True
    return here and not _runs(worker["process"])


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, as somebody else's
        return True
    return True


def _public(text: str) -> str:
    """The same without the passwords of URLs: postgresql://me:***@host/db."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError('compare needs optuna: pip install -e ".[sweep]"') from error
    return optuna
