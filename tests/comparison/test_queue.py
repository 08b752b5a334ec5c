"""The queue: each run once, whatever the number of workers, and whatever happens to them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from sinelr_lightning.comparison import queue as module
from sinelr_lightning.comparison.plan import Case, Plan
from sinelr_lightning.comparison.queue import Queue
from sinelr_lightning.errors import UserError

PLAN = Plan((Case("A", 1), Case("B", None)), (0.1, 0.2), (0, 1), "m", "max", "a.yaml")
WORKER = """
import os, pathlib, sys, time
sys.path.insert(0, {tests!r})
from comparison.test_queue import PLAN
from sinelr_lightning.comparison.queue import Queue
queue = Queue(sys.argv[1], PLAN, pathlib.Path("claims"))
while (taken := queue.next(wait=0.1)) is not None:
    run, ticket = taken
    with open(sys.argv[2], "a") as file:
        file.write(run.name + "\\n")
    time.sleep(float(sys.argv[3]))
    queue.done(ticket, run.lr + run.seed, {{}})
"""
every_storage = pytest.mark.parametrize("storage", ["queue.journal", "sqlite:///queue.db"])


def worker(storage: str, file: Path, pause: float = 0.0) -> subprocess.Popen:
    code = WORKER.format(tests=str(Path(__file__).parents[1]))
    command = [sys.executable, "-c", code, storage, str(file), str(pause)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


@every_storage
def test_all_runs_once(storage: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    queue, seen = Queue(storage, PLAN, tmp_path), []
    while (taken := queue.next()) is not None:
        run, ticket = taken
        seen.append(run.name)
        queue.done(ticket, run.lr if run.case.method == "A" else None, {"seconds": 1.0})
    assert seen == [
        "A_k1_lr0.1_seed0", "A_k1_lr0.2_seed0", "B_lr0.1_seed0", "B_lr0.2_seed0", "A_k1_lr0.2_seed1", "B_lr0.1_seed1",
    ]  # fmt: skip
    assert queue.results()["A_k1_lr0.2_seed1"] == 0.2 and queue.results()["B_lr0.1_seed0"] is None
    assert queue.details()["B_lr0.1_seed0"] == {"seconds": 1.0}
    assert Queue(storage, PLAN, tmp_path).next() is None  # and it is kept


@every_storage
def test_two_workers_do_no_run_twice(storage: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workers = [worker(storage, tmp_path / "seen", 0.05) for _ in range(2)]
    assert [process.wait(60) for process in workers] == [0, 0]
    seen = (tmp_path / "seen").read_text().split()
    assert len(seen) == len(set(seen)) == PLAN.total()


def test_of_two_trials_for_one_run_one_does_it(tmp_path):
    queue = Queue(str(tmp_path / "q"), PLAN, tmp_path / "claims")
    name = PLAN.wanted({})[0].name
    for _ in range(2):  # as two workers that look at the same moment
        queue.study.enqueue_trial({}, user_attrs={"run": name})
    first = queue.study.ask()
    assert queue._claim(name, first.number)
    assert not queue._claim(name, 1)
    queue.give_back(first)
    assert queue._claim(name, 1) and not queue._claim(name, 2)


def test_a_killed_workers_run_is_done_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed = worker("queue.journal", tmp_path / "seen", 60)
    while not (tmp_path / "seen").is_file():
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert worker("queue.journal", tmp_path / "seen").wait(60) == 0
    seen = (tmp_path / "seen").read_text().split()
    assert sorted(seen) == sorted([seen[0], *{*seen}]) and len(set(seen)) == PLAN.total()


def test_a_silent_worker_elsewhere_loses_its_run(tmp_path, monkeypatch):
    queue = Queue(str(tmp_path / "q"), PLAN, tmp_path)
    run, ticket = queue.next()
    monkeypatch.setattr(module.socket, "gethostname", lambda: "elsewhere")
    assert Queue(str(tmp_path / "q"), PLAN, tmp_path).next()[0] != run  # it lives
    monkeypatch.setattr(module, "_SILENT", -1.0)
    assert Queue(str(tmp_path / "q"), PLAN, tmp_path).next()[0] != run  # the other's, taken back
    names = []
    monkeypatch.setattr(module, "_SILENT", 120.0)
    last = Queue(str(tmp_path / "q"), PLAN, tmp_path)
    for _ in range(3):
        names.append(last.next()[0].name)
    assert run.name in names
    queue.done(ticket, 1.0, {})  # too late, and no error
    assert run.name not in last.results()


def test_a_run_given_back_is_handed_out_again(tmp_path):
    queue = Queue(str(tmp_path / "q"), PLAN, tmp_path)
    run, ticket = queue.next()
    queue.give_back(ticket)
    assert run in [queue.next()[0] for _ in range(4)]


def test_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT", 0.01)
    queue = Queue(str(tmp_path / "q"), PLAN, tmp_path)
    _, ticket = queue.next()
    first = queue.study.trials[0].user_attrs["worker"]["seen"]
    with queue.working(ticket):
        time.sleep(0.2)
    assert queue.study.trials[0].user_attrs["worker"]["seen"] > first


def test_mistakes(tmp_path):
    Queue(str(tmp_path / "q"), PLAN, tmp_path)
    other = Plan(PLAN.cases, PLAN.lrs, (0, 1, 2), "m", "max", "a.yaml")
    with pytest.raises(UserError, match=r"holds another comparison: seeds is \[0, 1, 2\] here and \[0, 1\] there"):
        Queue(str(tmp_path / "q"), other, tmp_path)
    with pytest.raises(UserError, match="storage nosuch://x cannot be opened"):
        Queue("nosuch://x", PLAN, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened"):
        Queue(str(tmp_path / "file" / "q"), PLAN, tmp_path)
