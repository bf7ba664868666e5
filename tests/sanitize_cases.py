"""Every kernel once or more, on small odd shapes: what tests/sanitize.py runs under the sanitizer.

`python tests/sanitize_cases.py` runs them by itself; each is compared with float64 on the CPU, so
that a case which launches nothing, or the wrong thing, is no clean case.
"""

import argparse
import os
import sys
from collections.abc import Callable

import torch

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, FocalLoss, plans
from fastseg_losses.functional import predict_mask, region_sums
from fastseg_losses.ops_generalized import Finish

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Case = Callable[[], None]


def agree(ours, exact, tolerance):
    ours, exact = ours.detach().cpu().double(), exact.detach()
    error = (ours - exact).norm() / exact.norm().clamp_min(1e-30)
    assert error <= tolerance, f"off by {float(error):.1e}"


def check(build, logits, targets, valid=None):
    """Forward with statistics, and backward. Inputs are made on the CPU: fewer launches."""
    x = logits.to(DEVICE, copy=True).requires_grad_()
    y = logits.double().requires_grad_()
    mask = None if valid is None else valid.to(DEVICE)
    loss, stats = build(backend="triton").to(DEVICE)(x, targets.to(DEVICE), mask, return_stats=True)
    expected, theirs = build(backend="torch")(y, targets, valid, return_stats=True)
    (loss * 0.7).sum().backward()
    (expected * 0.7).sum().backward()
    agree(loss, expected, 1e-5)
    agree(stats.tensor, theirs.tensor.double(), 1e-4)
    agree(x.grad, y.grad, 1e-5 if x.dtype == torch.float32 else 1e-2)


def binary(shape, *, soft=False, dtype=torch.float32, valid=None, **options):
    logits = (3 * torch.randn(shape)).to(dtype)
    high = options.pop("high", shape[2:])
    drawn = torch.rand(*shape[:2], *high)
    targets = drawn if soft else (drawn < 0.3).to(torch.uint8)
    if "ignore_index" in options:
        targets[drawn > 0.8] = options["ignore_index"]
    mode = "binary" if shape[1] == 1 else "multilabel"
    check(
        lambda **k: CombinedSegmentationLoss(mode=mode, iou_weight=0.1, **options, **k),
        logits,
        targets,
        mask_of(valid, shape[0], high),
    )


def multiclass(shape, *, soft=False, dtype=torch.float32, valid=None, layout=None, **options):
    N, C = shape[:2]
    high = options.pop("high", shape[2:])
    logits = (3 * torch.randn(shape)).to(dtype)
    if layout is not None:
        logits = logits.contiguous(memory_format=layout)
    targets = torch.randn(N, C, *high).softmax(1) if soft else torch.randint(C, (N, *high))
    if not soft:
        targets = targets.to(torch.uint8)
        targets[:, :2] = options.get("ignore_index", 0)
    check(
        lambda **k: CombinedSegmentationLoss(mode="multiclass", iou_weight=0.1, **options, **k),
        logits,
        targets,
        mask_of(valid, N, high),
    )


def mask_of(valid, N, high):
    if valid == "sample":
        return torch.arange(N) % 2 == 0
    return torch.rand(N, *high) < 0.6 if valid == "pixel" else None


def points(shape, **options):
    """No region term: the forward launch writes the gradient too."""
    logits, targets = 3 * torch.randn(shape), torch.rand(shape).round().to(torch.uint8)
    if "ignore_index" in options:
        targets[:, :, :3] = options["ignore_index"]
    check(lambda **k: FocalLoss(mode="multilabel", **options, **k), logits, targets)


def sums():
    logits, targets = torch.randn(3, 2, 7, 9), torch.rand(3, 2, 7, 9)
    x, y = logits.to(DEVICE, copy=True).requires_grad_(), logits.double().requires_grad_()
    options = {"mode": "multilabel"}
    ours = region_sums(x, targets.to(DEVICE), backend="triton", **options)
    exact = region_sums(y, targets, backend="torch", **options)
    for mine, theirs in zip(ours, exact, strict=True):
        agree(mine, theirs, 1e-5)
    (ours.I / ours.P).sum().backward()
    (exact.I / exact.P).sum().backward()
    agree(x.grad, y.grad, 1e-5)


def generalized(N, C, batch):
    drawn = 1 + torch.rand(4, N, C) * 100
    results = []
    for tensor, backend in ((drawn.to(DEVICE), "triton"), (drawn.double(), "torch")):
        leaf = tensor.requires_grad_()
        loss = Finish(0, "square", 0.1, 0.1, "mean", batch).of_sums(leaf, backend)
        loss.backward()
        results += [loss, leaf.grad]
    agree(results[0], results[2], 1e-5)
    agree(results[1], results[3], 1e-4)


def masks(shape, size, mode):
    logits = torch.randn(shape)
    found = predict_mask(logits.to(DEVICE), size, mode=mode, backend="triton").cpu()
    expected = predict_mask(logits, size, mode=mode, backend="torch")
    assert (found != expected).sum() <= 1  # a tie within a rounding


def single(tile, shape, upstream, dtype=torch.float32):
    """The launch that reads each input once, with the tile, or (None) the one it takes itself."""
    from fastseg_losses.kernels import single_plan

    plans.PLANS.clear()
    single_plan._COMPILED.clear()  # of an earlier case
    before = single_plan.single_tile

    def forced(groups, pixels, *_):
        tiles = -(-pixels // (tile.team * 128 * tile.num_warps))
        return tile._replace(tiles=max(tiles, tile.tiles))

    if tile is not None:
        single_plan.single_tile = forced
    try:
        logits = 3 * torch.randn(shape)
        targets = (torch.rand(shape) < 0.3).float()
        x, y = logits.to(DEVICE, copy=True).requires_grad_(), logits.double().requires_grad_()
        given = targets.to(DEVICE, dtype)
        expected = CombinedSegmentationLoss(backend="torch")(y, targets)
        (expected * upstream).backward()
        for _ in range(2):
            x.grad = None
            loss = CombinedSegmentationLoss(backend="triton")(x, given)
            (loss * upstream).backward()
            agree(loss, expected, 1e-5)
            agree(x.grad, y.grad, 1e-5)
        (plan,) = plans.PLANS.values()
        assert plan.early is not None, "two launches served"
    finally:
        single_plan.single_tile = before
        plans.PLANS.clear()


def low_dice(shape, high):
    """Dice alone: no pointwise term."""
    logits, targets = torch.randn(shape), torch.rand(*shape[:2], *high)
    check(lambda **k: DiceLoss(mode="multilabel", upsample="bilinear", **k), logits, targets)


BILINEAR = {"upsample": "bilinear"}
HALF, LAST = torch.float16, torch.channels_last
WEIGHTS = {"class_weights": [1.0, 2.0, 0.5], "bce_pos_weight": [1.0, 2.0, 3.0]}

CASES: dict[str, Case] = {
    "binary": lambda: binary((3, 1, 37, 29)),
    "binary, soft, samples": lambda: binary((3, 1, 17, 5), soft=True, valid="sample"),
    "binary, half, pixels": lambda: binary((2, 1, 13, 11), dtype=HALF, valid="pixel"),
    "binary, many programs": lambda: binary((1, 1, 60_001)),
    "binary, one pixel": lambda: binary((1, 1, 1)),
    "binary, none": lambda: binary((2, 1, 7, 9), reduction="none", focal_gamma=1.5),
    "binary, batch": lambda: binary((3, 1, 37, 29), batch=True),
    "binary, few groups": lambda: binary((2, 3, 61, 59), class_weights=[0.7, 1.3, 0.9]),
    "multilabel, weights": lambda: binary((3, 3, 7, 5), **WEIGHTS),
    "multilabel, batch": lambda: binary((3, 3, 19, 23), batch=True, ignore_index=255),
    "multilabel, batch, many": lambda: binary((140, 2, 3, 5), batch=True),
    "points": lambda: points((3, 2, 37, 29)),
    "points, sum": lambda: points((1, 1, 60_001), reduction="sum", ignore_index=255),
    "region sums": sums,
    "multiclass, 4": lambda: multiclass((2, 4, 13, 17), ignore_index=255),
    "multiclass, 4, soft": lambda: multiclass((2, 4, 13, 17), soft=True, valid="pixel"),
    "multiclass, 19": lambda: multiclass((2, 19, 33, 31), ignore_index=255, valid="sample"),
    "multiclass, 19, half, channels last": lambda: multiclass(
        (2, 19, 9, 7), dtype=HALF, layout=LAST, valid="pixel"
    ),
    "multiclass, 40": lambda: multiclass((2, 40, 11, 13), bce_label_smoothing=0.1),
    "multiclass, 150": lambda: multiclass((1, 150, 9, 15), ignore_index=255),
    "multiclass, 150, many programs": lambda: multiclass((2, 150, 90, 91), reduction="none"),
    "multiclass, sigmoid, batch": lambda: multiclass(
        (2, 5, 9, 7), activation="sigmoid", batch=True
    ),
    "upsampled, odd": lambda: binary((2, 1, 9, 11), high=(37, 45), valid="pixel", **BILINEAR),
    "upsampled, whole, half": lambda: binary((2, 1, 8, 8), high=(32, 32), dtype=HALF, **BILINEAR),
    "upsampled, nearest": lambda: binary((2, 1, 5, 7), high=(23, 30), upsample="nearest"),
    "upsampled, Dice": lambda: low_dice((2, 3, 5, 40), (11, 171)),
    "class cells, 5": lambda: multiclass((2, 5, 6, 7), high=(23, 30), ignore_index=255, **BILINEAR),
    "class cells, 19, half": lambda: multiclass(
        (1, 19, 6, 9), high=(24, 36), dtype=HALF, **BILINEAR
    ),
    "class cells, 40": lambda: multiclass((1, 40, 5, 70), high=(9, 143), valid="pixel", **BILINEAR),
    "class cells, soft": lambda: multiclass((1, 4, 5, 6), high=(11, 13), soft=True, **BILINEAR),
    "mask, 19 classes": lambda: masks((2, 19, 7, 9), (29, 37), "multiclass"),
    "mask, 300 classes": lambda: masks((1, 300, 3, 5), (7, 11), "multiclass"),
    "mask, binary": lambda: masks((2, 1, 7, 9), (28, 36), "binary"),
    "generalised Dice": lambda: generalized(37, 19, False),
    "generalised Dice, batch": lambda: generalized(3, 5, True),
}


def single_cases(large: bool) -> dict[str, Case]:
    """Those of the single launch, where there is one."""
    if DEVICE.type != "cuda" or torch.cuda.get_device_capability() != (9, 0):
        return {}
    from fastseg_losses.kernels.tiles import SingleTile

    alone, team, long = (
        SingleTile(1, 3, 1, 8, 3, 1, 2),
        SingleTile(5, 2, 1, 8, 3, 1, 2),
        SingleTile(4, 2, 1, 8, 5, 2, 2),
    )
    cases: dict[str, Case] = {
        "single, alone": lambda: single(alone, (3, 1, 48, 80), 1.0),
        "single, team, tails": lambda: single(team, (7, 1, 61, 48), 0.25),
        "single, bytes": lambda: single(team, (7, 1, 61, 48), 1.0, torch.uint8),
        "single, long lag": lambda: single(long, (5, 1, 64, 64), 3.7),
    }
    if large:  # the smallest that takes it by itself on 132 multiprocessors
        cases["single, at its own size"] = lambda: single(None, (16, 1, 800, 1024), 1.0)
    return cases


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--large", action="store_true", help="the single launch at its own size too"
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args(arguments)
    if DEVICE.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        print("needs a GPU (or TRITON_INTERPRET=1, to see that the cases are right)")
        return 2
    failed, ran = 0, 0
    for name, case in {**CASES, **single_cases(options.large)}.items():
        if options.only not in name:
            continue
        torch.manual_seed(0)
        ran += 1
        try:
            case()
            print(f"ok    {name}", flush=True)
        except Exception as error:  # the sanitizer's own findings matter more than the first one
            failed += 1
            print(f"WRONG {name}: {type(error).__name__}: {error}", flush=True)
    print(f"{ran} cases, {failed} wrong", flush=True)
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
