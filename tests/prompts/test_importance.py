from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fusionkit.prompts.importance import importance_loss


def test_a_case_by_hand():
    # Importance of three experts over two samples, one layer: 1.1, 0.6, 0.3; mean 2/3.
    probabilities = torch.tensor([[[0.6, 0.3, 0.1]], [[0.5, 0.3, 0.2]]])
    mean = 2 / 3
    variance = ((1.1 - mean) ** 2 + (0.6 - mean) ** 2 + (0.3 - mean) ** 2) / 2
    assert importance_loss(probabilities, 0.05).item() == pytest.approx(variance / mean**2)


def test_a_balanced_layer_contributes_nothing_and_gets_no_gradient():
    balanced = torch.tensor([[0.49, 0.51]])
    skewed = torch.tensor([[0.9, 0.1]])
    probabilities = torch.stack([balanced, skewed], dim=1).requires_grad_()
    loss = importance_loss(probabilities, 0.05)
    loss.backward()
    assert loss.item() == pytest.approx((0.32 / 0.25) / 2)
    assert (probabilities.grad[:, 0] == 0).all()
    assert (probabilities.grad[:, 1] != 0).any()


def test_one_expert_cannot_be_unbalanced():
    assert importance_loss(torch.ones(4, 3, 1), 0.05).item() == 0


def _half(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    logits = _logits()
    mine = logits[2 * rank : 2 * rank + 2].clone().requires_grad_()
    loss = importance_loss(mine.softmax(-1), 0.05)
    loss.backward()
    torch.save((loss.detach(), mine.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _logits() -> torch.Tensor:
    return torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))


def test_two_half_batches_on_two_processes_equal_one_batch(tmp_path):
    mp.spawn(_half, args=(29_500 + os.getpid() % 1000, str(tmp_path)), nprocs=2)
    whole = _logits().requires_grad_()
    loss = importance_loss(whole.softmax(-1), 0.05)
    loss.backward()
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for half, _ in halves:
        torch.testing.assert_close(half, loss.detach())
    # Data parallel training takes the mean of the two gradients of shared weights.
    gradient = torch.cat([gradient for _, gradient in halves]) / 2
    torch.testing.assert_close(gradient, whole.grad)
