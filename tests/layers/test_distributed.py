"""Two gloo ranks compute the gradients of one process: FSDP2 for every family, DDP for the thin way."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sinelr_lightning.layers import Factorization, SineLowRank

from .families import EXAMPLES, name_of
from .test_sine_ops import ways

WIDTH, BATCH = 45, 6  # an odd width shards unevenly; rank-1 sines run thin


def network(family: Factorization) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(family(WIDTH, WIDTH), nn.Tanh(), family(WIDTH, WIDTH, bias=False))


def batch() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(4))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model(x).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check(case: str, ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(ours) == set(expected), case
    for name, gradient in expected.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{case} {n}: {m}"
        )


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        share = batch().chunk(2)[rank]
        for family in EXAMPLES:
            expected = gradients(network(family), batch())
            model = network(family)
            for layer in (model[0], model[2]):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            sharded = gradients(model, share)
            check(f"FSDP {name_of(family)}", {n: g.full_tensor() for n, g in sharded.items()}, expected)
        family = SineLowRank(rank=1)
        replicated = DistributedDataParallel(network(family))
        assert ways(replicated(share)) == {"_ThinBackward"}
        ours = {n.removeprefix("module."): g for n, g in gradients(replicated, share).items()}
        check("DDP", ours, gradients(network(family), batch()))
    finally:
        dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path):
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
