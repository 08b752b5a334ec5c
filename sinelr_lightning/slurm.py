"""Compares what SLURM started with what the Trainer expects, before a difference makes the ranks wait for ever."""

import os
import re
from collections.abc import Mapping
from typing import Any

from sinelr_lightning.errors import UserError

__all__ = ["check_allocation", "job_version"]


def in_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a task of a SLURM job (started by srun, not in an interactive shell)."""
    return "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def job_version(environment: Mapping[str, str] = os.environ) -> int | None:
    """Give the job's number as the version of its run: a requeued job keeps it, and so finds its own folder again."""
    number = environment.get("SLURM_JOB_ID", "")
    return int(number) if in_job(environment) and number.isdigit() else None


def check_allocation(num_nodes: int, devices: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Compare SLURM_NNODES, SLURM_NTASKS_PER_NODE and SLURM_NTASKS with trainer.num_nodes and trainer.devices.

    `devices` is counted when it is a number, a list, or a string of either; "auto" is taken from SLURM.

    Raises:
        UserError: they differ; the message names both sides of each difference.
    """
    if not in_job(environment):
        return
    wrong = []
    nodes = _count(environment.get("SLURM_NNODES"))
    per_node = _count(environment.get("SLURM_NTASKS_PER_NODE"))
    tasks = _count(environment.get("SLURM_NTASKS"))
    count = device_count(devices)
    if nodes is not None and nodes != num_nodes:
        wrong.append(f"trainer.num_nodes is {num_nodes} but SLURM gave {nodes} nodes (--nodes)")
    if count is not None and per_node is not None and per_node != count:
        wrong.append(f"trainer.devices is {devices} but SLURM starts {per_node} tasks a node (--ntasks-per-node)")
    if count is not None and tasks is not None and tasks != num_nodes * count:
        wrong.append(f"the trainer expects {num_nodes} × {count} processes but SLURM starts {tasks} (--ntasks)")
    if per_node is None and tasks is not None and tasks > 1:
        wrong.append("SLURM_NTASKS_PER_NODE is not set: ask with --ntasks-per-node, not with --ntasks")
    if wrong:
        raise UserError("the job and the trainer do not agree: " + "; ".join(wrong))


def device_count(devices: Any) -> int | None:
    """Count the devices that trainer.devices asks for: 4, "4", [0, 1], "0,1" → 4, 4, 2, 2; None for "auto" and -1."""
    if isinstance(devices, str):
        parts = [part for part in devices.split(",") if part.strip()]
        if "," in devices:
            return len(parts)
        devices = int(devices) if re.fullmatch(r"-?\d+", devices.strip()) else None
    if isinstance(devices, list):
        return len(devices)
    return devices if isinstance(devices, int) and devices >= 0 else None


def _count(text: str | None) -> int | None:
    # SLURM writes "2(x3)" for two tasks on each of three nodes.
    match = re.match(r"\d+", text or "")
    return int(match.group()) if match else None
