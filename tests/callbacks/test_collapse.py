import types

import pytest
import torch

from sinelr_lightning.callbacks.collapse import RestartOnCollapse
from sinelr_lightning.errors import UserError


class Module:
    device = "cpu"
    reason: str | None = "dead"

    def __init__(self):
        self.seeds = []

    def collapse(self):
        return self.reason

    def restart(self, seed):
        self.seeds.append(seed)


def trainer(step, others_dead=True):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    optimizer.state["kept"] = 1
    strategy = types.SimpleNamespace(
        reduce=lambda dead, reduce_op: dead * others_dead, broadcast=lambda seed: 7
    )  # another process has the seed 7
    return types.SimpleNamespace(global_step=step, strategy=strategy, optimizers=[optimizer])


def look(callback, run, module):
    callback.on_train_batch_end(run, module, None, None, 0)


def test_all_processes_restart_once_from_one_seed():
    callback, module, run = RestartOnCollapse(every=2), Module(), trainer(2)
    look(callback, run, module)
    assert module.seeds == [7] and not run.optimizers[0].state
    again = RestartOnCollapse(every=2)
    again.load_state_dict(callback.state_dict())
    with pytest.raises(UserError, match="collapsed again at step 4: dead"):
        look(again, trainer(4), module)


@pytest.mark.parametrize(("run", "reason"), [(trainer(3), "dead"), (trainer(2), None), (trainer(2, False), "dead")])
def test_it_leaves_a_run_alone_between_looks_and_while_any_process_lives(run, reason):
    module = Module()
    module.reason = reason
    look(RestartOnCollapse(every=2), run, module)
    assert module.seeds == [] and run.optimizers[0].state
