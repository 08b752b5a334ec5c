"""The sweep that the quality benchmarks share gives every method the same chance."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from time import sleep

import pytest

SPEC = importlib.util.spec_from_file_location("sweep", Path(__file__).parents[1] / "benchmarks" / "sweep.py")
sweep = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sweep)

BEST = {"dense": 4e-3, "low rank": 1.6e-2, "sine": 1e-3}
LRS = [2e-3, 4e-3, 8e-3]
CASES = [("dense", 0), ("low rank", 1), ("sine", 1)]


def run(one):
    method, _, lr, seed = one
    return {"score": -abs(lr - BEST[method]) + seed * 1e-9}


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", lambda jobs, _: ThreadPoolExecutor(jobs))  # nothing is spawned


@pytest.fixture
def swept(tmp_path):
    made = sweep.Sweep(tmp_path / "report.json", {"steps": 5}, "score")
    made.work(run, CASES, LRS, seeds=3, jobs=2)
    return made


def test_a_best_rate_inside_the_sweep_is_taken(swept):
    assert swept.best_lr(("dense", 0)) == 4e-3
    assert sorted(r["lr"] for r in swept.report["runs"] if r["method"] == "dense" and r["seed"] == 0) == [
        2e-3, 4e-3, 8e-3,
    ]  # fmt: skip


def test_a_best_rate_at_the_edge_widens_the_sweep_either_way(swept):
    assert swept.best_lr(("low rank", 1)) == 1.6e-2 and swept.best_lr(("sine", 1)) == 1e-3
    rates = {m: {r["lr"] for r in swept.report["runs"] if r["method"] == m} for m in ("low rank", "sine")}
    assert swept.swept(("sine", 1), LRS) and not swept.swept(("another", 1), LRS)
    assert 3.2e-2 in rates["low rank"] and 5e-4 in rates["sine"]  # one further, to see that it is worse


def test_the_other_seeds_run_at_the_best_rate_alone(swept):
    assert sorted(r["seed"] for r in swept.chosen(("sine", 1))) == [0, 1, 2]
    assert all(r["lr"] == 1e-3 for r in swept.report["runs"] if r["method"] == "sine" and r["seed"])
    mean, spread = swept.mean(("sine", 1), "score")
    assert mean == pytest.approx(1e-9) and spread == pytest.approx(1e-9)


def test_no_case_waits_for_another(tmp_path):
    gone_on = Event()

    def run_of_two(one):
        method, _, lr, seed = one
        if method == "dense" and seed == 2:
            gone_on.set()
        return {"score": run(one)["score"], "waited": method == "sine" and lr == 2e-3 and not gone_on.wait(10)}

    made = sweep.Sweep(tmp_path / "report.json", {}, "score")
    made.work(run_of_two, [("sine", 1), ("dense", 0)], LRS, seeds=3, jobs=2)
    assert not any(r["waited"] for r in made.report["runs"])


def test_a_run_that_fails_ends_it_and_loses_no_other(tmp_path):
    begun = Barrier(2)

    def run_or_fail(one):
        begun.wait(10)
        if one[0] == "sine":
            raise RuntimeError("out of memory")
        sleep(0.2)
        return run(one)

    path = tmp_path / "report.json"
    with pytest.raises(RuntimeError, match="out of memory"):
        sweep.Sweep(path, {}, "score").work(run_or_fail, [("dense", 0), ("sine", 1)], LRS[:1], seeds=1, jobs=2)
    assert [r["method"] for r in sweep.Sweep(path, {}, "score").report["runs"]] == ["dense"]


def test_a_report_of_another_setting_is_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"setting": {"steps": 5}, "runs": []}))
    assert sweep.Sweep(path, {"steps": 5}, "score").report["runs"] == []
    with pytest.raises(SystemExit, match="other settings"):
        sweep.Sweep(path, {"steps": 6}, "score")
