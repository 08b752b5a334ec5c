"""The sweep that the quality benchmarks share gives every method the same chance."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


@pytest.fixture
def swept(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", lambda jobs, _: ThreadPoolExecutor(jobs))  # nothing is spawned
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


def test_a_report_of_another_setting_is_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"setting": {"steps": 5}, "runs": []}))
    assert sweep.Sweep(path, {"steps": 5}, "score").report["runs"] == []
    with pytest.raises(SystemExit, match="other settings"):
        sweep.Sweep(path, {"steps": 6}, "score")
