"""The queue: each run once, whatever the number of workers, and whatever happens to them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
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
    for number in range(3):  # as workers that look at the same moment
        queue.study.enqueue_trial({}, user_attrs={"run": PLAN.wanted({})[0].name, "id": str(number)})
    first, second, third = (queue.study.ask() for _ in range(3))
    assert queue._claim(first)
    assert not queue._claim(second)
    queue.give_back(first)
    assert queue._claim(second) and not queue._claim(third)


@pytest.mark.timeout(60)
def test_cases_of_one_method_and_rank_share_their_runs(tmp_path):
    plan = Plan((Case("B", 1, beside=2), Case("B", 1, beside=3), Case("B", 2)), (0.1, 0.2), (0, 1), "m", "max", "a")
    queue, seen = Queue(str(tmp_path / "q"), plan, tmp_path / "claims"), []
    while (taken := queue.next(wait=0.1)) is not None:
        seen.append(taken[0].name)
        queue.done(taken[1], taken[0].lr, {})
    assert len(seen) == len({*seen}) == plan.total() == 6


@pytest.mark.timeout(60)
def test_claims_of_another_study_count_for_nothing(tmp_path):
    for storage in ("one", "other"):  # as a queue that was deleted, or another --storage
        queue, seen = Queue(str(tmp_path / storage), PLAN, tmp_path / "claims"), []
        while (taken := queue.next(wait=0.1)) is not None:
            seen.append(taken[0].name)
            queue.done(taken[1], 1.0, {})
        assert len(seen) == PLAN.total()


def test_a_run_whose_child_outlives_its_worker_waits_for_it(tmp_path):
    queue = Queue(str(tmp_path / "q"), PLAN, tmp_path / "claims")
    _, ticket = queue.next()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with queue.working(ticket) as name_child:
        name_child(child.pid)
    worker = queue.study.trials[0].user_attrs["worker"]
    gone = worker | {"process": 2**22 + 1, "seen": 0.0}  # no such process
    assert not module._lost(gone)
    child.communicate()
    assert module._lost(gone)


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
    with pytest.raises(UserError, match=r"q holds another .* there; name another --storage and another --out, or"):
        Queue(str(tmp_path / "q"), other, tmp_path, "--storage")
    with pytest.raises(UserError, match=r"q holds another .* there; name another --storage, or"):
        Queue(str(tmp_path / "q"), other, tmp_path / "new" / "claims", "--storage")
    with pytest.raises(UserError, match=r"out holds another .* there; name another --out, or"):
        Queue(str(tmp_path / "a"), PLAN, tmp_path / "out" / "claims", "--storage")
        Queue(str(tmp_path / "b"), other, tmp_path / "out" / "claims", "--storage")
    with pytest.raises(UserError, match=r"a.yaml has changed since .*q began with it: name another --out, or put it"):
        Queue(str(tmp_path / "q"), replace(PLAN, digest="123"), tmp_path, "--out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened"):
        Queue(str(tmp_path / "file" / "q"), PLAN, tmp_path)


def test_no_password_is_told(tmp_path):
    with pytest.raises(UserError, match=r"storage nosuch://me:\*\*\*@host/db cannot be opened") as error:
        Queue("nosuch://me:sec:r@et@host/db", PLAN, tmp_path)
    assert "sec" not in str(error.value)
    assert module._public("mysql://host/db?user=me&password=secret&a=b") == "mysql://host/db?user=me&password=***&a=b"
    assert module._public("sqlite:///FILE.db") == "sqlite:///FILE.db"
