import math

import pytest
import torch

from sinelr_lightning.rendering import edges_after, edges_around, merge, midpoints, sample_pdf, stratified

RAYS = torch.zeros(4, 3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_worked_stratified():
    assert stratified(2.0, 6.0, 4, torch.zeros(3)).tolist() == [2.5, 3.5, 4.5, 5.5]
    torch.testing.assert_close(stratified(2.0, 6.0, 2, torch.zeros(3), lindisp=True), torch.tensor([2.4, 4.0]))


def test_even_disparity_reaches_to_infinity():
    t = stratified(1.0, math.inf, 4, torch.zeros(3), lindisp=True)
    torch.testing.assert_close(1 / t, torch.tensor([0.875, 0.625, 0.375, 0.125]))


def test_jittered_positions_stay_in_their_bins_and_fill_them():
    t = stratified(2.0, 6.0, 8, torch.zeros(4000, 3), generator())
    inside = (t - 2) / 0.5 - torch.arange(8)
    assert inside.min() >= 0 and inside.max() <= 1 + 1e-5
    torch.testing.assert_close(inside.mean(0), torch.full((8,), 0.5), rtol=0, atol=0.02)
    torch.testing.assert_close(inside.std(0), torch.full((8,), 12**-0.5), rtol=0, atol=0.01)


def test_the_generator_alone_decides():
    first, second = (stratified(0.0, 1.0, 8, RAYS, generator(3)) for _ in range(2))
    assert torch.equal(first, second)
    edges, weights = torch.rand(4, 9).sort().values, torch.rand(4, 8)
    state = torch.get_rng_state()
    stratified(0.0, 1.0, 8, RAYS, generator())
    sample_pdf(edges, weights, 5, generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, stratified(0.0, 1.0, 8, RAYS, generator(4)))


def test_near_and_far_of_each_ray():
    near, far = torch.tensor([0.0, 1, 2, 3]), torch.tensor([1.0, 3, 6, 11])
    t = stratified(near, far, 2, RAYS)
    assert t[:, 0].tolist() == [0.25, 1.5, 3.0, 5.0]
    edges = edges_around(t, near, far)
    assert torch.equal(edges[:, 0], near) and torch.equal(edges[:, -1], far)


def test_worked_sample_pdf():
    edges, weights = torch.tensor([0.0, 1, 2, 4]), torch.tensor([0.0, 0.5, 0.5])
    t = sample_pdf(edges, weights, 4)
    torch.testing.assert_close(t, torch.tensor([1.25, 1.75, 2.5, 3.5]), rtol=0, atol=1e-4)


def test_empty_rays_are_sampled_evenly_over_the_intervals():
    edges = torch.tensor([0.0, 1, 3, 7])
    t = sample_pdf(edges, torch.zeros(3), 3, generator=None)
    torch.testing.assert_close(t, torch.tensor([0.5, 2.0, 5.0]))


def test_samples_follow_the_weights():
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3])
    edges = torch.tensor([0.0, 1, 2, 2.5, 4])
    t = sample_pdf(edges.expand(3000, 5), weights.expand(3000, 4), 16, generator())
    counts = torch.histogram(t.flatten(), edges).hist / t.numel()
    torch.testing.assert_close(counts, weights, rtol=0, atol=2e-3)
    in_third = t[(t > 2) & (t < 2.5)]
    assert abs(in_third.mean() - 2.25) < 2e-3 and abs(in_third.std() - 0.5 / 12**0.5) < 2e-3


def test_padding_keeps_looking_at_the_whole_ray():
    weights = torch.tensor([1.0, 0, 0, 0])
    t = sample_pdf(torch.linspace(0, 4, 5), weights, 1000, padding=1.0)  # shares 2/5, 1/5, 1/5, 1/5
    assert abs((t < 1).float().mean() - 0.4) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("leading", [(), (7,), (2, 3), (0,)])
def test_sorted_inside_and_finite_whatever_the_weights(dtype, leading):
    edges = torch.rand(*leading, 17, dtype=dtype).sort(-1).values
    spikes = torch.zeros(*leading, 16, dtype=dtype)
    spikes[..., 3] = 1e6
    for weights in (spikes, torch.zeros_like(spikes), torch.rand_like(spikes) ** 30):
        for source in (None, generator()):
            t = sample_pdf(edges, weights, 33, source)
            assert t.shape == (*leading, 33) and t.dtype == dtype and t.isfinite().all()
            assert (t.diff() >= -1e-6).all()
            assert (t >= edges[..., :1]).all() and (t <= edges[..., -1:]).all()


def test_a_nan_weight_gives_nan_and_no_crash():
    t = sample_pdf(torch.linspace(0, 1, 5), torch.tensor([0.1, math.nan, 0, 0]), 4)
    assert t.isnan().any()


def test_a_share_rounded_to_one_stays_on_the_ray(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.ones(shape))
    t = sample_pdf(torch.linspace(0, 1, 5), torch.tensor([1e9, 0, 0, 0]), 4, generator())
    assert t.isfinite().all() and t.max() <= 1


def test_no_gradient_passes():
    weights = torch.rand(3, 8, requires_grad=True)
    assert not sample_pdf(torch.rand(3, 9).sort().values, weights, 4).requires_grad


def test_edges_midpoints_and_merge():
    positions = torch.tensor([1.0, 2, 4])
    assert edges_around(positions, 0.0, 6.0).tolist() == [0.0, 1.5, 3.0, 6.0]
    assert edges_after(positions, 6.0).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert edges_after(positions, torch.tensor(6.0)).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert midpoints(torch.tensor([0.0, 1, 4])).tolist() == [0.5, 2.5]
    assert merge(torch.tensor([1.0, 3]), torch.tensor([2.0, 4])).tolist() == [1.0, 2.0, 3.0, 4.0]
