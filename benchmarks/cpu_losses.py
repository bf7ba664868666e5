"""What a loss costs on a CPU beside PyTorch's own words: python benchmarks/cpu_losses.py FILE.json.

Processor time of one thread, the sides in turns, the lowest of many; prints the table of
docs/performance.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rivals import HAND
from torch import Tensor

import fastseg_losses as fs

ROUNDS = 50
Loss = Callable[[Tensor, Tensor], Tensor]


def class_dice(x: Tensor, y: Tensor) -> Tensor:
    """Dice of a softmax, with the one-hot tensor that one would write."""
    p = torch.softmax(x, 1)
    t = F.one_hot(y, x.shape[1]).movedim(-1, 1).float()
    I, P, T = ((p * t).sum((2, 3)), p.sum((2, 3)), t.sum((2, 3)))  # noqa: E741
    return (1 - (2 * I + 1) / (P + T + 1)).mean()


def class_focal(x: Tensor, y: Tensor) -> Tensor:
    """Focal loss of a softmax, gamma 2."""
    nll = F.cross_entropy(x, y, reduction="none")
    return ((1 - torch.exp(-nll)) ** 2 * nll).mean()


def class_combined(x: Tensor, y: Tensor) -> Tensor:
    """The default weights."""
    return 0.4 * F.cross_entropy(x, y) + 0.4 * class_dice(x, y) + 0.2 * class_focal(x, y)


def main() -> None:
    """Measure, write, print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    masks = (torch.randn(4, 1, 256, 256), (torch.rand(4, 1, 256, 256) < 0.3).float())
    ids = (torch.randn(2, 19, 128, 256), torch.randint(19, (2, 128, 256)))
    cases: list[tuple[str, fs.SegmentationLoss, Loss, tuple[Tensor, Tensor]]] = [
        ("`BCELoss`", fs.BCELoss(), HAND["bce"], masks),
        ("`DiceLoss`", fs.DiceLoss(), HAND["dice"], masks),
        ("`FocalLoss`", fs.FocalLoss(), HAND["focal"], masks),
        ("`CombinedSegmentationLoss`", fs.CombinedSegmentationLoss(), HAND["combined"], masks),
        ("`CrossEntropyLoss`", fs.CrossEntropyLoss(), F.cross_entropy, ids),
        ("`DiceLoss`, multiclass", fs.DiceLoss(mode="multiclass"), class_dice, ids),
        ("`FocalLoss`, multiclass", fs.FocalLoss(mode="multiclass"), class_focal, ids),
        (
            "`CombinedSegmentationLoss`, multiclass",
            fs.CombinedSegmentationLoss(mode="multiclass"),
            class_combined,
            ids,
        ),
    ]
    rows = [
        {"loss": name, **figures(ours, theirs, *inputs)} for name, ours, theirs, inputs in cases
    ]
    content = {"torch": torch.__version__, "rounds": ROUNDS, "threads": 1, "rows": rows}
    Path(sys.argv[1]).write_text(json.dumps(content, indent=0) + "\n")
    for row in rows:
        both = row["ours_ms"], row["torch_ms"]
        print(
            f"| {row['loss']} | {both[0]:.2f} ms | {both[1]:.2f} ms | {both[0] / both[1]:.2f} | "
            f"{row['ours_forward_ms'] / row['torch_forward_ms']:.2f} | "
            f"{row['statistics_ms'] / both[1]:.2f} |"
        )


def figures(ours: fs.SegmentationLoss, theirs: Loss, x: Tensor, t: Tensor) -> dict[str, float]:
    """Milliseconds, the lowest of `ROUNDS`; both sides have to agree."""
    torch.testing.assert_close(ours(x, t), theirs(x, t), rtol=1e-5, atol=1e-6)
    leaf = x.clone().requires_grad_()

    def backward(loss: Loss) -> None:
        leaf.grad = None
        loss(leaf, t).backward()

    ways = {
        "ours_ms": lambda: backward(ours),
        "torch_ms": lambda: backward(theirs),
        "statistics_ms": lambda: backward(lambda a, b: ours(a, b, return_stats=True)[0]),
        "ours_forward_ms": lambda: ours(x, t),
        "torch_forward_ms": lambda: theirs(x, t),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, run in ways.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], 1000 * (time.process_time() - start))
    return {name: round(value, 3) for name, value in best.items()}


if __name__ == "__main__":
    main()
