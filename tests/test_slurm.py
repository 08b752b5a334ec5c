import pytest

from sinelr_lightning.errors import UserError
from sinelr_lightning.slurm import check_allocation, device_count, job_version

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "nerf",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NTASKS": "8",
}


@pytest.mark.parametrize("devices", [4, "4", [0, 1, 2, 3], "0,1,2,3", "auto", -1, "-1"])
def test_what_agrees_passes(devices):
    check_allocation(2, devices, JOB)


@pytest.mark.parametrize(
    ("nodes", "devices", "change", "messages"),
    [
        (1, 4, {}, ["trainer.num_nodes is 1 but SLURM gave 2 nodes", "1 × 4 processes but SLURM starts 8"]),
        (2, 2, {}, ["trainer.devices is 2 but SLURM starts 4 tasks a node", "2 × 2 processes but SLURM starts 8"]),
        (2, 4, {"SLURM_NTASKS": "6"}, ["2 × 4 processes but SLURM starts 6"]),
        (2, 4, {"SLURM_NTASKS_PER_NODE": ""}, ["SLURM_NTASKS_PER_NODE is not set"]),
        (3, "auto", {}, ["trainer.num_nodes is 3"]),
    ],
)
def test_each_difference_is_named(nodes, devices, change, messages):
    with pytest.raises(UserError) as caught:
        check_allocation(nodes, devices, {**JOB, **change})
    assert all(message in str(caught.value) for message in messages), str(caught.value)


def test_outside_of_a_job_nothing_is_compared():
    check_allocation(7, 7, {})
    check_allocation(7, 7, {**JOB, "SLURM_JOB_NAME": "interactive"})
    assert job_version({}) is None and job_version(JOB) == 4711


@pytest.mark.parametrize(
    ("devices", "count"), [(2, 2), ("2", 2), ([0, 5], 2), ("0,5", 2), ("auto", None), (-1, None)]
)
def test_device_count(devices, count):
    assert device_count(devices) == count
