"""Two processes with half a batch each, beside one process with all of it: DDP and FSDP2.

gloo on the CPU; NCCL where there are two GPUs. One pair of processes runs every case, because
starting it takes longest. Whole trainings: training/test_distributed.py.
"""

import os
import socket
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, region_sums

WAYS = ["ddp", "ddp, loss inside", "fsdp2"]
CRITERIA = {
    "binary": lambda **k: CombinedSegmentationLoss(**k),
    "multiclass": lambda **k: CombinedSegmentationLoss(
        mode="multiclass", class_weights=[1.0, 2.0, 0.5], reduction="sum", **k
    ),
}
# Interpreted kernels need a session without a GPU (conftest.py).
ON_CPU = ["torch"] if torch.cuda.is_available() else ["torch", "triton"]
DEVICES = {"cpu": ON_CPU, "cuda": ["torch", "triton"]}


class Found(NamedTuple):
    gradients: dict[str, torch.Tensor]  # of all parameters in a row
    refused: str  # what a sharded tensor is told


class Scored(nn.Module):
    """A net of each pixel, with the loss inside of what is wrapped, or without."""

    def __init__(self, criterion=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
        self.criterion = criterion

    def forward(self, images, masks=None):
        logits = self.net(images).movedim(-1, 1).contiguous()
        return logits if self.criterion is None else self.criterion(logits, masks)


def batch(device):
    torch.manual_seed(1)
    images, labels = torch.randn(4, 5, 6, 2), torch.randint(3, (4, 5, 6))
    return images.to(device), labels.to(device)


def targets_of(criterion, labels):
    """Class ids, or a mask for each class."""
    if criterion.spec.mode == "multiclass":
        return labels
    return nn.functional.one_hot(labels, 3).movedim(-1, 1)


def criterion_of(name, backend, device):
    mode = {"mode": "multilabel"} if name == "binary" else {}
    return CRITERIA[name](backend=backend, **mode).to(device)


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    grads = [p.grad for p in model.parameters()]
    whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    return torch.cat([g.flatten() for g in whole]).cpu()


def joint_dice(logits, masks, backend):
    """Batch Dice of all processes: the sums added up, then the formula; mine have the gradient."""
    sums = torch.stack(region_sums(logits, masks, mode="multilabel", backend=backend)).sum(1)
    others = sums.detach().clone()
    dist.all_reduce(others)
    I, P, T, _ = sums + (others - sums.detach())  # noqa: E741
    # DDP takes the mean over the processes of what each of them has the sum of
    return dist.get_world_size() * (1 - (2 * I + 1) / (P + T + 1)).mean()


def one_of_two(rank, port, file, kind):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=2)
    mesh = init_device_mesh(kind, (2,))
    images, labels = (v.chunk(2)[rank] for v in batch(device))
    found = {}
    for backend in DEVICES[kind]:
        for name in CRITERIA:
            criterion = criterion_of(name, backend, device)
            masks = targets_of(criterion, labels)
            for way in WAYS:
                inside = criterion if way == "ddp, loss inside" else None
                model = Scored(inside).to(device)
                if way == "fsdp2":
                    fully_shard(model.net, mesh=mesh)
                    model = fully_shard(model, mesh=mesh)
                else:
                    model = DistributedDataParallel(model)
                loss = model(images, masks) if inside else criterion(model(images), masks)
                found[f"{backend}, {name}, {way}"] = gradients_of(model, loss)
        criterion = DiceLoss(mode="multilabel", batch=True, backend=backend)
        masks = targets_of(criterion, labels)
        model = DistributedDataParallel(Scored().to(device))
        found[f"{backend}, batch"] = gradients_of(model, criterion(model(images), masks))
        loss = joint_dice(model(images), masks, backend)
        found[f"{backend}, joint"] = gradients_of(model, loss)
    refused = ""
    if "triton" in DEVICES[kind]:
        logits = distribute_tensor(torch.randn(4, 1, 5, 6, device=device), mesh, [Shard(0)])
        try:
            DiceLoss(backend="triton")(logits, logits > 0)
        except Exception as error:
            refused = str(error)
    if rank == 0:
        torch.save((found, refused), file)
    dist.destroy_process_group()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cpu", id="gloo"),
        pytest.param(
            "cuda",
            id="nccl",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
            ],
        ),
    ],
)
def two(request, tmp_path_factory):
    """The device, and what a pair of processes found there."""
    file = tmp_path_factory.mktemp("two") / "found.pt"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes.spawn(one_of_two, (port, file, request.param), nprocs=2)
    return request.param, Found(*torch.load(file, weights_only=True))


def of_one(criterion, device):
    """The gradient of one process with the whole batch."""
    images, labels = batch(device)
    model = Scored().to(device)
    return gradients_of(model, criterion(model(images), targets_of(criterion, labels)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CRITERIA)
def test_two_processes_have_the_gradient_of_one(name, way, two):
    """Of means over samples; of sums, half of it: DDP and FSDP2 take the mean over processes."""
    device, found = two
    for backend in DEVICES[device]:
        criterion = criterion_of(name, backend, device)
        expected = of_one(criterion, device) / (2 if criterion.spec.reduction == "sum" else 1)
        assert expected.abs().max() > 1e-3
        gradient = found.gradients[f"{backend}, {name}, {way}"]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_batch_dice_is_that_of_each_process(two):
    """Not that of the whole batch, which takes `region_sums`, added up before the formula."""
    device, found = two
    for backend in DEVICES[device]:
        whole = of_one(DiceLoss(mode="multilabel", batch=True, backend=backend), device)
        joint, each = (found.gradients[f"{backend}, {name}"] for name in ("joint", "batch"))
        torch.testing.assert_close(joint, whole, rtol=1e-4, atol=1e-6)
        assert (each - whole).abs().max() > 1e-2 * whole.abs().max()


def test_a_sharded_tensor_is_refused_by_name(two):
    """DTensor logits have no address of their own; nobody told PyTorch how to shard the loss."""
    device, found = two
    if "triton" not in DEVICES[device]:
        pytest.skip("the kernels do not run on this device")
    assert "loss_forward" in found.refused, found.refused
