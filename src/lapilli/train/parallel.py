"""Many processes that learn as one: who is who, and gradients averaged between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> tuple[int, int]:
    """Join the process group that torchrun announced; return rank and number of processes."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not dist.is_initialized():
        # Stages compute on the CPU, and NCCL takes no tensors from there.
        dist.init_process_group("gloo")
    return int(os.environ.get("RANK", "0")), world_size


def leave() -> None:
    """Leave the process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def total(value: float) -> float:
    """Return the sum of `value` over all processes."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor)
    return float(tensor)


def average_gradients(params: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over all processes, in one message.

    A process whose batch did not touch a parameter (no picture in it, say) counts as zero.
    """
    if not dist.is_initialized():
        return
    params = list(params)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for param, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
        param.grad = part.view_as(param)


def share_out(rows: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `compute(rows)`, each process having computed its share of the rows.

    Args:
        rows: (M, ...), the same in every process.
        compute: from some rows to as many results of the same shape, each by itself.
    """
    if not dist.is_initialized():
        return compute(rows)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    results = torch.zeros_like(rows)
    results[rank::world_size] = compute(rows[rank::world_size]).to(rows.dtype)
    dist.all_reduce(results)
    return results


def wait_for_all() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()
