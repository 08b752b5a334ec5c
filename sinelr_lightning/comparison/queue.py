"""A queue of runs in Optuna's storage, from which several processes or machines take."""

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sinelr_lightning.comparison.plan import Plan, Run
from sinelr_lightning.errors import UserError, first_line

__all__ = ["Queue"]

_BEAT = 15.0  # seconds between two signs of life
_TRIES = 4  # to open a database
_SILENT = 120.0  # seconds without one after which a run is taken from its worker

Trial = Any


class Queue:
    """The runs of one comparison as trials of one Optuna study; each is done once, whoever asks.

    A worker that begins a run gives a sign of life every 15 seconds. A run whose worker is silent for two minutes, or
    whose process is gone from this machine, is handed out again. Which trial does a run is settled by a file in
    `claims` that only one can make: workers that look at the same moment may each put it into the queue.

    Args:
        storage: an Optuna URL (sqlite:///FILE.db, postgresql://…), or a file for Optuna's journal.
        plan: what the runs are of; a study of another plan is refused.
        claims: folder of those files, which all workers share.

    Raises:
        UserError: Optuna is missing, the storage cannot be opened, or it holds another comparison.
    """

    def __init__(self, storage: str, plan: Plan, claims: Path) -> None:
        self.plan, self.claims = plan, claims
        self.optuna = _optuna()
        self.study = self._open(storage)
        described = json.dumps(plan.describe(), sort_keys=True)
        stored = self.study.user_attrs.get("plan")
        if stored is None:
            self.study.set_user_attr("plan", described)
        elif stored != described:
            before, now = json.loads(stored), json.loads(described)
            other = next(key for key in now if before.get(key) != now[key])
            raise UserError(
                f"{storage} holds another comparison: {other} is {now[other]} here and {before.get(other)} there; "
                "name another --out, or give the same options"
            )

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
                    f"storage {storage} cannot be opened ({first_line(error)}); give a URL such as "
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
                self.study.enqueue_trial({}, user_attrs={"run": name})
            if new or any(trial.state == states.WAITING for trial in known.values()):
                trial = self.study.ask()
                name = trial.user_attrs.get("run")
                if name in wanted and self._claim(name, trial.number):
                    self._beat(trial)
                    return wanted[name], trial
                self.give_back(trial)  # a run that another trial does
                continue
            if all(known[name].state == states.COMPLETE for name in wanted) and len(wanted) == self.plan.total():
                return None
            time.sleep(wait)

    def _claim(self, name: str, number: int) -> bool:
        """Whether this trial is the one that does the run; those that gave it up do not count."""
        self.claims.mkdir(parents=True, exist_ok=True)
        states = {trial.number: trial.state for trial in self.study.get_trials(deepcopy=False)}
        mine = self.claims / f".{socket.gethostname()}-{os.getpid()}"
        mine.write_text(str(number))
        try:
            for attempt in itertools.count():
                claim = self.claims / f"{name}.{attempt}"
                try:
                    os.link(mine, claim)  # fails where it exists, and is never seen half written
                    return True
                except FileExistsError:
                    if states.get(int(claim.read_text())) != self.optuna.trial.TrialState.FAIL:
                        return False
        finally:
            mine.unlink()
        return False

    def _take_back(self) -> None:
        for trial in self._first():
            if trial.state != self.optuna.trial.TrialState.RUNNING:
                continue
            began = trial.datetime_start.timestamp()
            if not _lost(trial.user_attrs.get("worker") or {"host": "", "process": 0, "seen": began}):
                continue
            self.give_back(trial.number)

    def _beat(self, trial: Trial) -> None:
        worker = {"host": socket.gethostname(), "process": os.getpid(), "seen": time.time()}
        with suppress(self.optuna.exceptions.UpdateFinishedTrialError):  # taken for lost
            trial.set_user_attr("worker", worker)

    @contextmanager
    def working(self, trial: Trial) -> Generator[None]:
        """Give signs of life until the block ends."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_BEAT):
                self._beat(trial)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
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


def _lost(worker: dict[str, Any]) -> bool:
    """Whether a worker gives no sign of life any more."""
    if time.time() - worker["seen"] > _SILENT:
        return True
    if worker["host"] != socket.gethostname():
        return False
    try:
        os.kill(worker["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, as somebody else's
        return False
    return False


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError('compare needs optuna: pip install -e ".[sweep]"') from error
    return optuna
