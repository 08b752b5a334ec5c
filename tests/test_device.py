"""What differs on a GPU: phases that reach the host late, captured graphs, half precision. Skipped without one.

The reference is the same formula in float64 on the CPU.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinelr_lightning.cli import main
from sinelr_lightning.layers import SineLowRank, cached_weights, fold, select
from sinelr_lightning.layers.adapted import adapted_sine_linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ranks = pytest.mark.parametrize("rank", [1, 2, 5])


def error(one: Tensor, exact: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float((one.detach().cpu().double() - exact).norm() / exact.norm())


def wide_result(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of x and the parameters for the loss Σy², by the formula itself."""
    u, v = (f.detach().cpu().double().requires_grad_() for f in layer.factors())
    bias, x = layer.bias.detach().cpu().double().requires_grad_(), x.detach().cpu().double().requires_grad_()
    sine, n = layer.factorization, layer.in_features
    y = F.linear(x, torch.sin(sine.omega(n) * u @ v.t()) / sine.divisor(n), bias)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, u, v, bias])]


def result(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y.float().square().sum(), [x, *layer.factors(), layer.bias])]


@pytest.fixture(params=[False, True], ids=["as chosen", "thin"])
def way(request, monkeypatch):
    """As the layers choose at these small sizes, and thin wherever phases allow it, as at large ones."""
    if request.param:
        monkeypatch.setattr(select, "_DEVICE_WORK", 0)


@pytest.mark.usefixtures("way")
@ranks
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_a_layer_stays_exact_while_training_moves_its_phases(rank: int, half: bool):
    layer = SineLowRank(rank)(512, 384).cuda()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(12):
        x = torch.randn(64, 512, device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            found = result(layer, x)
        exact = wide_result(layer, x)
        assert max(error(a, b) for a, b in zip(found, exact, strict=True)) < (2e-2 if half else 5e-5)
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()


@pytest.mark.usefixtures("way")
@ranks
def test_a_training_step_does_not_wait_for_the_device(rank: int):
    layer = SineLowRank(rank)(512, 384).cuda()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    x = torch.randn(64, 512, device="cuda")
    for step in range(4):
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            layer(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def adapter(m: int = 1536, n: int = 1024, rank: int = 4) -> dict[str, Tensor]:
    u = nn.Parameter(1e-3 * torch.randn(m, rank, device="cuda"))
    v = nn.Parameter(torch.randn(n, rank, device="cuda") / n)
    return {"base": torch.randn(m, n, device="cuda") / n**0.5, "u": u, "v": v}


def adapted(x: Tensor, base: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return adapted_sine_linear(x, base, None, 2.0, u, v, omega=180.0, gain=30.0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("grow", [1.0, 1.6], ids=["small phases", "growing phases"])
def test_an_adapter_stays_exact(grow: float):
    t = adapter()
    for _ in range(12):
        x = torch.randn(32, 1024, device="cuda", requires_grad=True)
        y = adapted(x, **t)
        found = [y, *torch.autograd.grad(y.square().sum(), [x, t["u"], t["v"]])]
        base, u, v, rows = (s.detach().cpu().double().requires_grad_() for s in (t["base"], t["u"], t["v"], x))
        exact = F.linear(rows, base + torch.sin(180 * u @ v.t()) * (2 / 30))
        expected = [exact.detach(), *torch.autograd.grad(exact.square().sum(), [rows, u, v])]
        assert max(error(a, b) for a, b in zip(found, expected, strict=True)) < 5e-5
        with torch.no_grad():
            t["u"].mul_(1 + (grow - 1) / 6)  # below the margin of the host's late copy


@pytest.mark.usefixtures("way")
def test_an_adapter_does_not_wait_for_the_device():
    t, x = adapter(), torch.randn(32, 1024, device="cuda")
    for step in range(4):
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            adapted(x, **t).square().sum().backward()
            with torch.no_grad():
                t["u"].mul_(1.01)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("way")
@ranks
def test_a_captured_graph_follows_its_factors(rank: int):
    layer = SineLowRank(rank)(512, 384).cuda().eval()
    x = torch.randn(64, 512, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(stream):
            layer(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        for factor in layer.factors():
            factor.mul_(2)
        graph.replay()
    assert error(y, wide_result(layer, x)[0]) < 5e-5


@pytest.mark.usefixtures("way")
@ranks
def test_compiled(rank: int):
    layer = SineLowRank(rank)(256, 192).cuda()
    x = torch.randn(64, 256, device="cuda")
    found = result(layer, x)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    rows = x.detach().requires_grad_()
    y = compiled(rows)
    again = [y, *torch.autograd.grad(y.square().sum(), [rows, *compiled.factors(), compiled.bias])]
    assert max(error(a, b.detach().cpu().double()) for a, b in zip(again, found, strict=True)) < 5e-5


@pytest.mark.usefixtures("way")
@ranks
def test_folded_and_kept(rank: int):
    layer = nn.Sequential(SineLowRank(rank)(512, 384)).cuda().eval()
    x = torch.randn(64, 512, device="cuda")
    with torch.inference_mode():
        exact = layer(x).cpu().double()
        with cached_weights(layer):
            assert error(layer(x), exact) < 5e-6
        assert error(fold(copy.deepcopy(layer))(x), exact) < 5e-6
        assert error(fold(copy.deepcopy(layer), tolerance=1e-4)(x), exact) < 1e-3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["nerf_llff", "occupancy_mesh", "classification_digits"])
def test_a_task_trains_and_resumes(name: str, precision: str, tmp_path, pytestconfig, monkeypatch):
    monkeypatch.chdir(pytestconfig.rootpath)
    small = ["--trainer.max_steps=8", "--trainer.limit_val_batches=1", f"--runs_dir={tmp_path}"]
    gpu = ["--trainer.accelerator=gpu", "--trainer.devices=1", f"--trainer.precision={precision}"]
    assert main(["fit", "--config", f"configs/{name}.yaml", *small, *gpu]) == 0
    run = tmp_path / name / "version_0"
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_steps=12"]) == 0
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
