"""What other libraries' losses need of a spec: kernels against the reference in float64."""

import pytest
import torch
from oracle import TOLERANCE, assert_no_worse

from fastseg_losses.ops import segmentation_loss
from fastseg_losses.spec import LossSpec, PointTerm, RegionTerm

SMP = RegionTerm("tversky", 1.0, 0.3, 0.7, 0.5, floor=1e-7)
MONAI = RegionTerm("dice", 0.7, 0.5, 0.5, 0.5, smooth_dr=1.5)
NEGATIVE = RegionTerm("dice", 1.0, 0.5, 0.5, 0.5, floor=1e-8, offset=0.0)
LOG = RegionTerm("iou", 1.0, 1.0, 1.0, 0.0, log_loss=True, floor=1e-3)
FOCAL = PointTerm("focal", 0.4, alpha=0.3, gamma=1.5)

# fields of the spec, whether targets are soft
CASES = {
    "minimum": ({"overlap": "minimum", "regions": (SMP, MONAI)}, True),
    "squared": ({"squared": True, "regions": (MONAI,)}, True),
    "squared-hard": ({"squared": True, "regions": (MONAI,)}, False),
    "zero": ({"absent": "zero", "regions": (SMP,), "batch": True}, False),
    "all": ({"absent": "all", "regions": (MONAI, NEGATIVE), "ignore_index": 1}, False),
    "log": ({"regions": (LOG,), "reduction": "none", "overlap": "minimum"}, True),
    "sums": ({"reduction": "sums", "squared": True, "overlap": "minimum"}, True),
}
SIGMOID = {
    "identity": ({"activation": "identity", "regions": (SMP, LOG)}, True),
    "identity-minimum": (
        {"activation": "identity", "overlap": "minimum", "regions": (SMP,), "absent": "zero"},
        False,
    ),
    "likelihood": ({"points": (PointTerm("focal", 1.0, 0.3, gamma=2.0, miss="likelihood"),)}, True),
    "likelihood-0.5": (
        {"points": (PointTerm("focal", 1.0, gamma=0.5, miss="likelihood"),), "regions": (MONAI,)},
        True,
    ),
    "margin": ({"points": (PointTerm("focal", 1.0, 0.6, gamma=2.0, miss="margin"),)}, True),
    "margin-hard": ({"points": (PointTerm("focal", 1.0, 0.6, gamma=2.0, miss="margin"),)}, False),
}
WAYS = [
    *[("binary", None, k) for k in (*CASES, *SIGMOID)],
    *[("multilabel", None, k) for k in ("minimum", "zero", "all", "identity", "margin")],
    *[("multiclass", None, k) for k in CASES],
    *[("multiclass", "sigmoid", k) for k in (*CASES, *SIGMOID)],
]


def drawn(mode, activation, soft, device):
    C = {"binary": 1, "multilabel": 3, "multiclass": 5}[mode]
    x = torch.randn(2, C, 9, 13, device=device) * 3
    x[0, 0, 0, :4] = torch.tensor([60.0, -60.0, 200.0, -200.0])
    if activation == "identity":
        x = x.sigmoid()
        x[0, 0, 0, :3] = torch.tensor([0.0, 1.0, 0.5])
    if mode == "multiclass" and not soft:
        y = torch.randint(1, C, (2, 9, 13), device=device)  # class 0 is absent
        return x, y
    t = torch.rand(x.shape, device=device)
    if mode == "multiclass":
        t = t / t.sum(1, keepdim=True)
    t = t if soft else t.round().to(torch.uint8)
    t[1] *= 0 if mode == "multilabel" else 1
    return x, t


@pytest.mark.parametrize(("dtype", "weighted"), [(torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize(("mode", "activation", "name"), WAYS)
def test_kernels(mode, activation, name, dtype, weighted, device):
    fields, soft = {**CASES, **SIGMOID}[name]
    fields = {"activation": activation, "points": (), **fields}
    if mode == "multiclass" and soft:
        fields.pop("ignore_index", None)
    if name == "all":
        fields["points"] = (FOCAL,)
    if mode == "multiclass" and fields["activation"] is None:
        fields["points"] = tuple(PointTerm("focal", t.weight, gamma=1.5) for t in fields["points"])
    spec = LossSpec(mode=mode, **fields)
    x, t = drawn(mode, fields["activation"], soft, device)
    x = x.to(dtype)
    results = []
    for kind, backend in ((dtype, "triton"), (dtype, "torch"), (torch.float64, "torch")):
        leaf = x.detach().to(kind).clone().requires_grad_()
        targets = t.to(kind) if soft else t
        if soft:  # the same values for all, whatever they round to
            targets = t.to(dtype).to(kind)
        C = x.shape[1]
        weights = torch.arange(1, C + 1, device=device) / C if weighted else None
        inputs = (leaf, targets, None, weights, None)
        loss, row = segmentation_loss(spec, inputs, backend=backend, want_stats=True)
        upstream = torch.cos(torch.arange(loss.numel(), device=device)).reshape(loss.shape)
        loss.backward(upstream.to(loss))
        results.append((loss.detach(), leaf.grad, row))
    (ours, dx, row), (peer, dpeer, _), (exact, dexact, erow) = results
    assert_no_worse(ours, peer, exact, 3e-6, "loss")
    assert_no_worse(dx, dpeer, dexact, TOLERANCE[dtype], "gradient")
    torch.testing.assert_close(row, erow.float(), rtol=3e-5, atol=3e-6)
