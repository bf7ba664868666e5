"""What a type checker knows of the public names: it rejects the mistakes that are marked here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each line is right, but those with a comment: the code of the error that mypy has to report there.
USAGE = """
from typing import assert_type

from torch import Tensor

import fastseg_losses
from fastseg_losses import CombinedSegmentationLoss, CrossEntropyLoss, DiceLoss, SegmentationStats
from fastseg_losses import FocalLoss, TverskyLoss, get_loss_function, region_sums

x, y = Tensor(), Tensor()
criterion = DiceLoss(mode="multiclass", ignore_index=255, class_weights=[0.5, 2.0])
assert_type(criterion(x, y), Tensor)
assert_type(criterion(x, y, None, False), Tensor)
assert_type(criterion(x, y, return_stats=True), tuple[Tensor, SegmentationStats])
assert_type(criterion(x, y, None, True), tuple[Tensor, SegmentationStats])
assert_type(criterion.forward(x, y, return_stats=True), tuple[Tensor, SegmentationStats])
flag = bool(x.numel())
assert_type(criterion(x, y, return_stats=flag), Tensor | tuple[Tensor, SegmentationStats])
assert_type(get_loss_function("dice")(x, y), Tensor)
loss, stats = CombinedSegmentationLoss()(x, y, return_stats=True)
assert_type(stats.class_iou, Tensor)
assert_type(stats.pred_mean, Tensor)
assert_type(stats.cpu().pred_mean, float)
FocalLoss(mode="multiclass", alpha=[1.0, 2.0], activation=None, backend="torch")

DiceLoss(mode="multiclas")  # arg-type
DiceLoss(ignore_idx=3)  # call-arg
DiceLoss("multiclass")  # arg-type
CrossEntropyLoss(reduction="average")  # arg-type
TverskyLoss(batch="yes")  # arg-type
CombinedSegmentationLoss(backend="cuda")  # arg-type
region_sums(x, y, mode="multi")  # arg-type
criterion(x, y, return_stat=True)  # call-overload
stats.pred_maen  # attr-defined
fastseg_losses.DiceLos  # attr-defined
""".lstrip()


@pytest.mark.slow
def test_a_checker_knows_what_is_taken_and_returned(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "usage.py"
    script.write_text(USAGE, encoding="utf-8")
    # from the root, where the package is found in any kind of installation
    command = [sys.executable, "-m", "mypy", "--python-version=3.11", "--no-error-summary"]
    found = subprocess.run([*command, str(script)], cwd=ROOT, capture_output=True, text=True)
    reported = re.findall(r"usage\.py:(\d+): error: .*\[([a-z-]+)\]", found.stdout)
    marked = [(i, re.search(r"  # (\S+)$", line)) for i, line in enumerate(USAGE.splitlines(), 1)]
    expected = [(str(i), mark[1]) for i, mark in marked if mark]
    assert len(expected) == 10
    assert sorted(set(reported)) == sorted(expected), found.stdout + found.stderr
