"""Copies and settings: pickles and state_dicts of every public class, default device and dtype."""

import copy
import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastseg_losses
from fastseg_losses import (
    BCELoss,
    CombinedSegmentationLoss,
    DiceLoss,
    FocalLoss,
    SegmentationLoss,
    integrations,
    state,
)
from fastseg_losses.compat import monai, nnunet, sam2, smp, torchvision

IDS = {"mode": "multiclass", "ignore_index": 255, "class_weights": [1.0, 2.0, 0.5]}
SOFTMAX = {"softmax": True, "to_onehot_y": True}
DICE = {"batch_dice": True, "smooth": 1.0}
# Every public class that is a module, with arguments that give it a state, by module and name.
MODULES = {
    "BCELoss": lambda: BCELoss(mode="multilabel", pos_weight=[1.0, 2.0, 3.0]),
    "CombinedSegmentationLoss": lambda: CombinedSegmentationLoss(focal_alpha=[0.2] * 3, **IDS),
    "CrossEntropyLoss": lambda: fastseg_losses.CrossEntropyLoss(label_smoothing=0.1, **IDS),
    "DiceLoss": lambda: DiceLoss(**IDS),
    "FocalLoss": lambda: FocalLoss([0.1, 0.5, 0.4], **IDS),
    "IoULoss": lambda: fastseg_losses.IoULoss(log_loss=True, **IDS),
    "SegmentationLoss": lambda: SegmentationLoss((), DiceLoss().spec.regions, **IDS),
    "TverskyLoss": lambda: fastseg_losses.TverskyLoss(gamma=1.5, **IDS),
    "smp.DiceLoss": lambda: smp.DiceLoss("multiclass", classes=[0, 2]),
    "smp.FocalLoss": lambda: smp.FocalLoss("multiclass", alpha=0.3),
    "smp.JaccardLoss": lambda: smp.JaccardLoss("multiclass"),
    "smp.SoftBCEWithLogitsLoss": lambda: smp.SoftBCEWithLogitsLoss(pos_weight=torch.tensor(2.0)),
    "smp.SoftCrossEntropyLoss": lambda: smp.SoftCrossEntropyLoss(smooth_factor=0.1),
    "smp.SumLoss": lambda: smp.SumLoss(smp.DiceLoss("multiclass"), smp.FocalLoss("multiclass")),
    "smp.TverskyLoss": lambda: smp.TverskyLoss("multiclass", alpha=0.3),
    "monai.DeepSupervisionLoss": lambda: monai.DeepSupervisionLoss(monai.DiceLoss(**SOFTMAX)),
    "monai.DiceCELoss": lambda: monai.DiceCELoss(weight=torch.ones(3), **SOFTMAX),
    "monai.DiceFocalLoss": lambda: monai.DiceFocalLoss(weight=[1.0, 2.0, 3.0], **SOFTMAX),
    "monai.DiceLoss": lambda: monai.DiceLoss(weight=[1.0, 2.0, 3.0], **SOFTMAX),
    "monai.FocalLoss": lambda: monai.FocalLoss(to_onehot_y=True, weight=[1.0, 2.0, 3.0]),
    "monai.GeneralizedDiceLoss": lambda: monai.GeneralizedDiceLoss(**SOFTMAX),
    "monai.MaskedDiceLoss": lambda: monai.MaskedDiceLoss(**SOFTMAX),
    "monai.TverskyLoss": lambda: monai.TverskyLoss(alpha=0.3, beta=0.7, **SOFTMAX),
    "nnunet.DC_and_BCE_loss": lambda: nnunet.DC_and_BCE_loss({}, DICE),
    "nnunet.DC_and_CE_loss": lambda: nnunet.DC_and_CE_loss(DICE, {}, weight_ce=2),
    "nnunet.DeepSupervisionWrapper": lambda: nnunet.DeepSupervisionWrapper(
        nnunet.DC_and_CE_loss(DICE, {})
    ),
    "nnunet.MemoryEfficientSoftDiceLoss": lambda: nnunet.MemoryEfficientSoftDiceLoss(
        apply_nonlin=nnunet.softmax_helper_dim1
    ),
    "nnunet.RobustCrossEntropyLoss": lambda: nnunet.RobustCrossEntropyLoss(torch.ones(3)),
    "nnunet.SoftDiceLoss": lambda: nnunet.SoftDiceLoss(apply_nonlin=nnunet.softmax_helper_dim1),
    "integrations.TorchvisionCriterion": lambda: integrations.TorchvisionCriterion(),
}
MASKS = {"BCELoss", "smp.SoftBCEWithLogitsLoss", "nnunet.DC_and_BCE_loss"}
# Label maps without a channel; what is not of this package wants one.
MAPS = {"smp", "integrations"}


def call(name, criterion):
    """The loss and the gradient on a batch that is the same at every call."""
    drawn = torch.Generator().manual_seed(0)
    leaf = torch.randn(2, 3, 6, 7, generator=drawn).requires_grad_()
    labels = torch.randint(3, (2, 1, 6, 7), generator=drawn)
    if name in MASKS:
        labels = torch.rand(2, 3, 6, 7, generator=drawn).round()
    elif name.split(".")[0] in MAPS:
        labels = labels[:, 0]
    if name == "nnunet.DeepSupervisionWrapper":
        loss = criterion([leaf], [labels])
    else:
        loss = criterion({"out": leaf} if name.startswith("integrations") else leaf, labels)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def public_modules():
    """The names above, as the packages give them; MONAI has second names for some."""
    for module in (fastseg_losses, smp, monai, nnunet, torchvision, sam2, integrations):
        short = module.__name__.removeprefix("fastseg_losses").removeprefix(".compat")
        for value in (getattr(module, name) for name in module.__all__):
            if isinstance(value, type) and issubclass(value, nn.Module):
                yield f"{short}.{value.__name__}".lstrip(".")


def test_no_class_is_forgotten():
    assert {*public_modules()} == {*MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_states(name):
    criterion = MODULES[name]()
    expected = call(name, criterion)
    assert expected[1].any()
    file = io.BytesIO()
    torch.save(criterion, file)
    file.seek(0)
    whole = torch.load(file, weights_only=False)  # what this test wrote itself
    twins = [copy.copy(criterion), copy.deepcopy(criterion), whole]
    twins.append(pickle.loads(pickle.dumps(criterion)))
    fresh = MODULES[name]()
    fresh.load_state_dict(criterion.state_dict())  # strict: neither lacks a name
    for twin in (*twins, fresh):
        assert type(twin) is type(criterion)
        torch.testing.assert_close(call(name, twin), expected, rtol=0, atol=0)


def test_statistics_and_sums_are_copied():
    logits, masks = torch.randn(2, 1, 5, 6), torch.rand(2, 1, 5, 6) < 0.3
    _, stats = DiceLoss()(logits, masks, return_stats=True)
    sums = fastseg_losses.region_sums(logits, masks)
    for twin in (copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        assert torch.equal(twin.tensor, stats.tensor) and twin.cpu() == stats.cpu()
    assert pickle.loads(pickle.dumps(stats.cpu())) == stats.cpu()
    assert all(map(torch.equal, pickle.loads(pickle.dumps(sums)), sums))


# ---- torch.set_default_device, torch.set_default_dtype


@pytest.fixture
def defaults():
    """May be changed; are put back."""
    yield torch
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_another_default_dtype_changes_nothing(dtype, backend, defaults, device):
    def losses():
        arguments = {"class_weights": [0.3, 0.7], "mode": "multilabel", "backend": backend}
        criterion = CombinedSegmentationLoss(bce_pos_weight=0.3, **arguments).to(device)
        loss, stats = criterion(logits, masks, return_stats=True)
        return loss, stats.tensor, torch.autograd.grad(loss, logits)[0]

    logits = torch.randn(2, 2, 5, 6, device=device, requires_grad=True)
    masks = torch.rand(2, 2, 5, 6, device=device) < 0.3
    expected = losses()
    defaults.set_default_dtype(dtype)
    torch.testing.assert_close(losses(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("default", ["the session's", "meta"])
def test_another_default_device(default, backend, defaults, device, monkeypatch):
    """Numbers go along; on "meta", where models are built before their weights come, they stay."""
    monkeypatch.setattr(state, "_ALARM", [])  # as at a process's first call
    arguments = {"class_weights": [1.0, 3.0], "mode": "multilabel", "backend": backend}
    logits = torch.randn(2, 2, 5, 6, device=device)
    masks = torch.rand(2, 2, 5, 6, device=device) < 0.3
    expected = DiceLoss(**arguments).to(device)(logits, masks)
    defaults.set_default_device(device if default != "meta" else default)
    criterion = DiceLoss(**arguments)
    assert criterion.class_weights.device.type == ("cpu" if default == "meta" else device.type)
    loss, stats = criterion.to(device)(logits, masks, return_stats=True)
    assert torch.equal(loss, expected) and stats.cpu().loss == pytest.approx(float(loss))
    assert BCELoss(pos_weight=torch.ones(2, device="cpu")).pos_weight.device.type == "cpu"
    if default == "meta":
        with pytest.raises(ValueError, match="^class_weights: .* on device 'meta'"):
            DiceLoss(class_weights=torch.ones(2), mode="multilabel")


# ---- processes

FORKS = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from fastseg_losses import DiceLoss, state
x, t = torch.randn(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
expected = DiceLoss(backend="triton")(x, t)
state._ALARM[2] = True  # as if CUDA had pinned it
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(DiceLoss(backend="triton")(x, t), expected)
else:
    try:
        DiceLoss(backend="triton")(x, t)
    except RuntimeError as error:
        plain = DiceLoss(backend="torch")(x, t)
        torch.testing.assert_close(plain, expected)
        os._exit(0 if "start processes with the 'spawn' method" in str(error) else 1)
    os._exit(2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and needs Triton")
def test_a_fork_of_a_process_with_cuda_says_so():
    """What CUDA pinned is not there in a child, which would be killed when it looks."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    end = subprocess.run(
        [sys.executable, "-c", FORKS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert end.returncode == 0, end.stderr
