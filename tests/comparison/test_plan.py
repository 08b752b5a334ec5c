"""Which runs a comparison wants, and what its figures say."""

import math

import numpy as np
import pytest

from sinelr_lightning.comparison.plan import Case, Plan, Run, parsed_floats, parsed_ints
from sinelr_lightning.comparison.report import difference_interval, interval, markdown, rows, verdicts, write_report
from sinelr_lightning.errors import UserError

SINE, LOW = Case("SineLowRank", 1), Case("LowRank", 1)
PLAN = Plan((SINE, LOW), (0.001, 0.01), (0, 1, 2), "val/psnr", "max", "nerf.yaml")


def results(sine=(30.0, 31.0, 30.5), low=(20.0, 21.0, 20.5), worse=10.0) -> dict[str, float | None]:
    """Both at their best at 0.01."""
    found: dict[str, float | None] = {}
    for case, values in ((SINE, sine), (LOW, low)):
        found |= {Run(case, 0.01, seed).name: value for seed, value in enumerate(values)}
        found[Run(case, 0.001, 0).name] = worse
    return found


def test_the_sweep_first_and_then_the_seeds_at_the_best_rate():
    assert [run.name for run in PLAN.wanted({})] == [
        "SineLowRank_k1_lr0.001_seed0",
        "SineLowRank_k1_lr0.01_seed0",
        "LowRank_k1_lr0.001_seed0",
        "LowRank_k1_lr0.01_seed0",
    ]
    half = {Run(SINE, 0.001, 0).name: 5.0, Run(SINE, 0.01, 0).name: 4.0}
    seeds = [run.name for run in PLAN.wanted(half)[4:]]
    assert seeds == ["SineLowRank_k1_lr0.001_seed1", "SineLowRank_k1_lr0.001_seed2"]
    assert len(PLAN.wanted(results())) == PLAN.total() == 8


@pytest.mark.parametrize(("mode", "lr"), [("max", 0.01), ("min", 0.001)])
def test_the_best_rate(mode: str, lr: float):
    plan = Plan((SINE,), (0.001, 0.01), (0,), "m", mode, "a.yaml")
    assert plan.best_lr(SINE, {Run(SINE, 0.001, 0).name: 1.0, Run(SINE, 0.01, 0).name: 2.0}) == lr
    assert plan.best_lr(SINE, {Run(SINE, 0.001, 0).name: None, Run(SINE, 0.01, 0).name: 9.0}) == 0.01  # one died
    assert plan.best_lr(SINE, {Run(SINE, 0.001, 0).name: 1.0}) is None


def test_intervals():
    assert interval([3.0]) == (3.0, 3.0)
    low, high = interval([1.0, 2.0, 3.0, 4.0])
    assert 1.25 <= low <= 1.6 and 3.4 <= high <= 3.75  # 2.5 ± 1.96·1.118/2, cut by what can be drawn
    assert all(math.isnan(end) for end in interval([]))
    assert difference_interval([5.0, 5.0], [2.0, 2.0]) == (3.0, 3.0)
    assert difference_interval([5.0, 5.0], [2.0, 3.0]) == pytest.approx((2.5 - 6.353102, 2.5 + 6.353102))  # t of 1
    half = 2.776445 * (2 * 0.25 / 3) ** 0.5  # Student's t of 4 degrees of freedom
    found = difference_interval([30.0, 31.0, 30.5], [20.0, 21.0, 20.5])
    assert found == pytest.approx((10 - half, 10 + half), rel=1e-6)


def test_equal_methods_seldom_differ():
    random = np.random.default_rng(0)
    draws = [difference_interval(*random.normal(size=(2, 3))) for _ in range(200)]
    assert sum(not low <= 0 <= high for low, high in draws) < 0.1 * len(draws)  # a bootstrap: 0.2


def test_verdicts():
    said = verdicts(PLAN, rows(PLAN, results(), {}))
    assert len(said) == 1 and said[0].startswith("SineLowRank better than LowRank at k = 1: +10, interval +8.87…")
    same = verdicts(PLAN, rows(PLAN, results(low=(30.2, 30.9, 30.4)), {}))
    assert same[0].startswith("no difference between SineLowRank and LowRank at k = 1:")
    lower = Plan((SINE, LOW), (0.001, 0.01), (0, 1, 2), "val/loss", "min", "nerf.yaml")
    assert verdicts(lower, rows(lower, results(worse=90.0), {}))[0].startswith("SineLowRank worse than LowRank")
    alone = verdicts(PLAN, rows(PLAN, results(low=(20.0, None, None)), {}))
    assert alone == ["SineLowRank and LowRank at k = 1: fewer than two seeds of either say nothing"]


def test_verdicts_beside_a_method_without_ranks_say_the_rank():
    plan = Plan((Case("Dense", None), LOW, Case("LowRank", 5)), (0.01,), (0, 1), "val/psnr", "max", "nerf.yaml")
    values = {Run(case, 0.01, seed).name: 1.0 + seed for case in plan.cases for seed in plan.seeds}
    said = verdicts(plan, rows(plan, values, {}))
    assert [line.partition(":")[0] for line in said] == [
        "no difference between Dense and LowRank at k = 1",
        "no difference between Dense and LowRank at k = 5",
    ]


def test_a_case_beside_two_ranks_has_one_row_and_two_verdicts(tmp_path):
    cases = (LOW, Case("LowRank", 2), Case("FedPara", 1, beside=2), Case("FedPara", 1))
    plan = Plan(cases, (0.01,), (0, 1), "val/psnr", "max", "nerf.yaml")
    values = {run.name: 1.0 for run in plan.wanted({})} | {Run(case, 0.01, 1).name: 2.0 for case in cases}
    assert len(plan.wanted(values)) == plan.total() == 6
    text = write_report(plan, values, {}, tmp_path)
    assert text.count("| FedPara |") == 1
    assert "LowRank and FedPara at k = 1:" in text and "LowRank and FedPara at k = 2 and 1:" in text
    assert (tmp_path / "compare.csv").read_text().count("FedPara") == 2


def test_table():
    name = Run(SINE, 0.01, 0).name
    details = {name: {"parameters": 1234, "share": 0.5, "seconds": 61.0}}
    text = markdown(PLAN, rows(PLAN, results(low=(20.0, None, 22.0)), details))
    assert "| SineLowRank | 1 | 1,234 | 50.00% | 30.5 ± 0.5 | " in text
    assert "| LowRank | 1 | – | – | 21 ± 1.4 (1 died) | 20…22 | 0.01 | – |" in text
    assert "the sweep's first or last rate is the best of SineLowRank k=1, LowRank k=1: widen --lrs" in text
    assert "fewer than five seeds" in text and "learning rates 0.001, 0.01, seeds 0, 1, 2" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parsed_ints("1,a", "rank"), "rank '1,a': give whole numbers apart by commas"),
        (lambda: parsed_ints("1,5,1", "rank"), "rank has one twice: 1, 5, 1"),
        (lambda: parsed_ints("0", "rank"), "rank: 0 is below 1"),
        (lambda: parsed_floats("1e-3,x", "lrs"), "lrs '1e-3,x': give numbers"),
        (lambda: parsed_floats("1e-3,-1", "lrs"), "all must be positive"),
        (lambda: parsed_floats("1e-3,0.001", "lrs"), "lrs has one twice: 0.001, 0.001"),
        (lambda: parsed_floats("0.01,0.010000001", "lrs"), "lrs '0.01,0.010000001': two are the same to six digits"),
    ],
)
def test_mistakes(call, message: str):
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value)
