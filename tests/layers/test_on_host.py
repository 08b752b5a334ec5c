"""The host copy is for devices; its rules do not depend on one."""

import math

import pytest
import torch
from torch import Tensor

from sinelr_lightning.layers import on_host as module
from sinelr_lightning.layers.on_host import on_host


def ask(key: Tensor, value: float, version: int) -> float:
    return on_host(key, torch.tensor(value), (version,))


def test_host_copy_is_one_step_late_with_a_margin_in_training():
    key = torch.zeros(1)
    assert ask(key, 2.0, 0) == 2.0  # the first is exact
    assert ask(key, 2.1, 1) == pytest.approx(1.15 * 2.0)
    assert ask(key, 2.2, 2) == pytest.approx(1.15 * 2.1)
    # Unchanged factors get the same answer: microbatches of one step take one way.
    assert ask(key, 2.2, 2) == pytest.approx(1.15 * 2.1)
    assert ask(key, 1.0, 3) == pytest.approx(1.15 * 2.2)


def test_host_copy_is_exact_after_a_change_without_gradients():
    key = torch.zeros(1)
    assert ask(key, 2.0, 0) == 2.0
    with torch.no_grad():
        assert ask(key, 9.0, 1) == 9.0
        assert ask(key, 9.0, 1) == 9.0
        assert ask(key, 0.5, 2) == 0.5
    assert ask(key, 0.6, 3) == pytest.approx(1.15 * 0.5)


def test_host_copy_notices_growth_behind_the_version():
    key = torch.zeros(1)
    assert ask(key, 2.0, 0) == 2.0
    assert ask(key, 5.0, 0) == 2.0  # sends 5
    assert ask(key, 5.0, 0) == pytest.approx(1.15 * 5.0)


def test_host_copy_repeats_its_answer_inside_backward():
    key, answers = torch.zeros(1), []
    ask(key, 2.0, 0)
    ask(key, 4.0, 1)
    leaf = torch.ones(1, requires_grad=True)
    (leaf * 1).register_hook(lambda grad: answers.append(ask(key, 4.0, 1)))
    y = leaf * 1
    y.register_hook(lambda grad: answers.append(ask(key, 40.0, 2)))
    y.backward()
    assert answers == [pytest.approx(1.15 * 2.0)]
    assert ask(key, 4.0, 2) == pytest.approx(1.15 * 4.0)  # nothing was sent from inside


def test_host_copy_recovers_from_nan_and_forgets_dead_factors():
    key = torch.zeros(1)
    assert ask(key, 1.0, 0) == 1.0
    ask(key, math.nan, 1)
    assert math.isnan(ask(key, 1.0, 2))
    assert ask(key, 1.0, 3) == pytest.approx(1.15)
    size = len(module._host_copies)
    del key
    assert len(module._host_copies) < size


def test_host_copy_is_exact_after_more_changes_than_a_step_makes():
    key = torch.zeros(1)
    assert ask(key, 0.01, 0) == pytest.approx(0.01)
    assert ask(key, 0.02, 8) == pytest.approx(1.15 * 0.01)  # sends 0.02
    assert ask(key, 3.0, 500) == 3.0
