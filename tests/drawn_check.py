"""How the numbers of a drawn case are judged, and what was seen.

Errors are relative to the root mean square of the exact values, which are those of `plain_loss` in
float64. An RMS over one number is that number: at one confident pixel the last bit of 1 - p is all
that is left, ours or PyTorch's, and which of the two rounds the better way is chance. So a case of
few pixels is run with several batches of values, and all of them make one RMS. And a Tversky loss
that leaves out FP is 0 where nothing is drawn, one that leaves out FN where everything is: what is
exact there is float64's rounding. Its errors are relative to the same loss that counts both, where
that is larger.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from drawn_cases import Case
from plain_losses import plain_loss
from torch import Tensor

# Beside PyTorch's own error: exponentials of 2 ulp, another order of addition. Half types have
# float32's: gradients are computed in float32 and rounded once, there as here.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 2e-6,
    torch.bfloat16: 2e-6,
}


class Errors(NamedTuple):
    """Of the loss or of the gradient, relative to the RMS of what is exact."""

    ours: float
    peer: float
    ratio: float  # ours over what is allowed, at most 1


def gradient_of(call, x: Tensor, dloss: float | Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient, for an upstream gradient."""
    x = x.detach().requires_grad_()
    loss = call(x)
    (slope,) = torch.autograd.grad(loss, x, torch.as_tensor(dloss).to(loss).expand_as(loss))
    return loss.detach(), slope


def run(case: Case, criterion, device: torch.device) -> dict[str, list[list[Tensor]]]:
    """(ours, PyTorch's, exact, what sets the scale) of each batch, of loss and of gradient."""
    scaled = case.two_sided()
    seen: dict[str, list[list[Tensor]]] = {"loss": [], "gradient": []}
    for batch in range(case.batches):
        x, targets, valid = case.inputs(batch, device)

        def plain(x, case=case, t=targets, v=valid):
            return plain_loss(case.name, case.arguments, case.shared, x, t, v)

        dloss = torch.randn(plain(x.double()).shape, device=device)
        calls = [
            (lambda x, t=targets, v=valid: criterion(x, t, v), x),
            (plain, x),
            (plain, x.double()),
        ]
        if scaled:
            calls.append((lambda x, plain=plain: plain(x, scaled), x.double()))
        results = [gradient_of(call, x, dloss) for call, x in calls]
        for what, values in zip(seen, zip(*results, strict=True), strict=True):
            assert values[0].shape == values[2].shape, f"{what}: shape {tuple(values[0].shape)}"
            assert values[2].isfinite().all(), f"{what}: {case} has no finite truth"
            seen[what].append([value.double().flatten() for value in values])
        assert results[0][0].dtype == (torch.float64 if x.dtype.itemsize == 8 else torch.float32)
        assert results[0][1].dtype == x.dtype
    return seen


def errors_of(batches: list[list[Tensor]], tolerance: float) -> Errors:
    ours, peer, *known = (torch.cat(each) for each in zip(*batches, strict=True))
    exact = known[0]
    scale = max(float(each.square().mean().sqrt()) for each in known)
    if scale == 0:  # nothing valid, say: then ours is 0 too
        wrong = float(ours.abs().max())
        return Errors(wrong, 0.0, 0.0 if wrong == 0 else math.inf)
    mine, theirs = (float((e - exact).square().mean().sqrt()) / scale for e in (ours, peer))
    # a PyTorch that is not finite here excuses nothing
    return Errors(mine, theirs, mine / ((theirs if math.isfinite(theirs) else 0.0) + tolerance))


def judge(case: Case, device: torch.device, backend: str, criterion=None) -> dict[str, Errors]:
    """The errors of a case's loss and gradient.

    Raises:
        AssertionError: one is larger than PyTorch's and the tolerance together, or NaN.
    """
    if criterion is None:
        criterion = case.criterion(backend).to(device)
    tolerance = TOLERANCE[case.dtype]
    errors = {
        what: errors_of(seen, tolerance) for what, seen in run(case, criterion, device).items()
    }
    for what, error in errors.items():
        assert error.ratio <= 1, (  # NaN is not
            f"{what}: error {error.ours:.2e}, PyTorch's {error.peer:.2e} + {tolerance:.0e}\n{case}"
        )
    return errors


class Record:
    """The worst of what was seen, by dtype, mode and "loss" or "gradient"."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, ...], dict[str, float]] = {}
        self.failures: list[str] = []

    def add(self, case: Case, errors: dict[str, Errors]) -> None:
        for what, error in errors.items():
            key = (str(case.dtype).removeprefix("torch."), case.shared["mode"], what)
            self.note(key, {"cases": 1, **error._asdict()})

    def note(self, key: tuple[str, ...], new: dict[str, float]) -> None:
        row = self.rows.setdefault(key, {"cases": 0, "ratio": -1.0})
        row["cases"] += new["cases"]
        if new["ratio"] > row["ratio"]:
            row.update({name: new[name] for name in Errors._fields})

    def join(self, other: "Record") -> None:
        for key, row in other.rows.items():
            self.note(key, row)
        self.failures += other.failures

    def write(self, where: str) -> None:
        """A line of JSON behind those of other processes, if NUMBERS_JSON names a file."""
        path = os.environ.get("NUMBERS_JSON")
        if path:
            rows = [{"key": key, **row} for key, row in self.rows.items()]
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"where": where, "rows": rows}) + "\n")

    @property
    def cases(self) -> int:
        return int(sum(row["cases"] for key, row in self.rows.items() if key[-1] == "loss"))

    @property
    def worst(self) -> float:
        return max((row["ratio"] for row in self.rows.values()), default=math.nan)


def print_table(path: str) -> None:
    """What all processes wrote into NUMBERS_JSON, joined."""
    tables: dict[str, Record] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        part = json.loads(line)
        record = tables.setdefault(part["where"], Record())
        for row in part["rows"]:
            record.note(tuple(row.pop("key")), row)
    for where, record in tables.items():
        for key, row in sorted(record.rows.items()):
            numbers = f"{row['ours']:.2e}, PyTorch {row['peer']:.2e}, {row['ratio']:.2f} of allowed"
            print(f"{where}: {' '.join(key)}: {row['cases']:.0f} cases, worst {numbers}")


if __name__ == "__main__":
    print_table(sys.argv[1])
