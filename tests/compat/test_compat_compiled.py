"""The compat losses under torch.compile, without a graph break: the same value and gradient."""

import pytest
import torch

from fastseg_losses.compat import monai, nnunet, sam2, smp, torchvision

LABELS = {"softmax": True, "to_onehot_y": True}
DICE = {"batch_dice": True, "do_bg": False}
CASES = {
    "smp-dice": (smp.DiceLoss("multiclass"), "ids"),
    "smp-focal": (smp.FocalLoss("multiclass"), "ids"),
    "smp-bce": (smp.SoftBCEWithLogitsLoss(smooth_factor=0.1), "masks"),
    "smp-ce": (smp.SoftCrossEntropyLoss(smooth_factor=0.1), "ids"),
    "smp-sum": (smp.SumLoss(smp.DiceLoss("multilabel"), smp.FocalLoss("multilabel")), "masks"),
    "monai-dice": (monai.DiceLoss(sigmoid=True, squared_pred=True), "masks"),
    "monai-dice-ce": (monai.DiceCELoss(**LABELS), "labels"),
    "monai-dice-focal": (monai.DiceFocalLoss(sigmoid=True, to_onehot_y=True), "labels"),
    "monai-two-activations": (monai.DiceFocalLoss(**LABELS), "labels"),
    "monai-generalized": (monai.GeneralizedDiceLoss(**LABELS), "labels"),
    "nnunet-ce": (nnunet.DC_and_CE_loss(DICE, {}, ignore_label=2), "labels"),
    "nnunet-bce": (nnunet.DC_and_BCE_loss({}, {}), "masks"),
    "sam2-dice": (lambda x, t: sam2.dice_loss(x, t, 2, True).sum(), "masks"),
    "torchvision": (lambda x, t: torchvision.sigmoid_focal_loss(x, t, reduction="mean"), "masks"),
}


@pytest.mark.parametrize("name", CASES)
def test_fullgraph(name):
    criterion, kind = CASES[name]
    x = torch.randn(2, 3, 8, 8)
    ids = torch.randint(0, 3, (2, 8, 8))
    target = {"ids": ids, "labels": ids[:, None], "masks": torch.rand(2, 3, 8, 8).round()}[kind]
    torch._dynamo.reset()
    results = []
    for loss in (criterion, torch.compile(criterion, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        value = loss(leaf, target)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*results)
