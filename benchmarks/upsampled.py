"""Low-resolution logits, beside interpolation and a loss: python benchmarks/upsampled.py NAME.

Writes benchmarks/results/NAME.json and NAME.md. Each implementation of each row runs in a process
of its own, so that what one has compiled or cached serves no other. GPU time is that of the
kernels, by the profiler; wall time apart; peak memory above the inputs. Needs a GPU; SegFormer
needs transformers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from conftest import UPSAMPLED, machine, upsampled_name
from measure import draw, kernels_us, mode_of, wall_us
from rivals import Loss, compiled, hand, ours
from torch import Tensor

from fastseg_losses.functional import predict_mask
from fastseg_losses.integrations import use_fused_loss

RESULTS = Path(__file__).parent / "results"
ROWS = dict(zip(("binary", "150 classes", "19 classes"), UPSAMPLED, strict=True))
LOSSES = ("ours", "eager", "compiled", "compiled dynamic")
MASKS = ("ours", "eager")
NETS = ("fused loss", "the model's own")


def main() -> None:
    """Measure everything, or with further arguments one implementation, in this process."""
    if len(sys.argv) > 2:
        kind, row, implementation = sys.argv[2:]
        measured = {"loss": loss_figures, "mask": mask_figures, "net": net_figures}[kind]
        print(json.dumps(measured(row, implementation)))
        return
    jobs = [("loss", row, each) for row in ROWS for each in LOSSES]
    jobs += [("mask", "150 classes", each) for each in MASKS]
    jobs += [("net", "SegFormer-B0", each) for each in NETS]
    rows = []
    for job in jobs:
        command = [sys.executable, __file__, sys.argv[1], *job]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            print(*job, run.stderr.strip().splitlines()[-1:], file=sys.stderr)
            continue
        figures = json.loads(run.stdout.splitlines()[-1])
        rows.append({"kind": job[0], "row": job[1], "implementation": job[2], **figures})
        print(*job, figures, flush=True)
    date = datetime.now(timezone.utc).date().isoformat()
    content = {"machine": machine(), "date": date, "rows": rows}
    RESULTS.joinpath(f"{sys.argv[1]}.json").write_text(json.dumps(content, indent=0) + "\n")
    RESULTS.joinpath(f"{sys.argv[1]}.md").write_text(table(content))


def loss_of(row: str, implementation: str) -> Loss:
    """BCE + Dice + focal, or cross-entropy + Dice, of low-resolution logits."""
    case = ROWS[row]
    name = upsampled_name(case)
    if implementation == "ours":
        return ours(name, mode_of(case))
    loss = hand(name)
    if implementation == "eager":
        return loss
    return compiled(loss, dynamic=implementation == "compiled dynamic")


def loss_figures(row: str, implementation: str) -> dict[str, Any]:
    """Forward and backward."""
    logits, targets = draw(ROWS[row], "cuda")
    loss = loss_of(row, implementation)

    def step() -> None:
        logits.grad = None
        loss(logits, targets).backward()

    figures = timed(step)
    logits.grad = None
    figures |= {"peak_bytes": peak_above(step)}
    figures |= {"gradient_bytes": logits.numel() * logits.element_size()}
    return figures | {"loss": loss(logits, targets).item()}


def mask_figures(row: str, implementation: str) -> dict[str, Any]:
    """The class map at full resolution."""
    logits, targets = draw(ROWS[row], "cuda")
    logits = logits.detach()
    size = tuple(targets.shape[-2:])

    def step() -> Tensor:
        if implementation == "ours":
            return predict_mask(logits, size)
        return F.interpolate(logits, size=size, mode="bilinear").argmax(1)

    figures = timed(step)
    return figures | {"peak_bytes": peak_above(step), "mask_bytes": targets.numel()}


def net_figures(row: str, implementation: str) -> dict[str, Any]:
    """A step of fine-tuning SegFormer-B0, 150 classes, batch 8 of 512x512, bfloat16 autocast."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    net = SegformerForSemanticSegmentation(SegformerConfig(num_labels=150)).cuda().train()
    if implementation == "fused loss":
        use_fused_loss(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=6e-5, fused=True)
    images = torch.randn(8, 3, 512, 512, device="cuda")
    labels = torch.randint(0, 150, (8, 512, 512), device="cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = net(pixel_values=images, labels=labels).loss
        loss.backward()
        optimizer.step()

    return timed(step) | {"peak_bytes": peak_above(step)}


def timed(step: Callable[[], Any]) -> dict[str, float]:
    """GPU time and wall time in microseconds, after enough calls to have compiled everything."""
    for _ in range(5):
        step()
    gpu_us, launches = kernels_us(step)
    wall = round(wall_us(step, "cuda"), 1)
    return {"gpu_us": round(gpu_us, 1), "launches": round(launches), "wall_us": wall}


def peak_above(step: Callable[[], Any]) -> int:
    """Bytes of the most memory that a call takes, above what was there before."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def table(content: dict[str, Any]) -> str:
    """The results as markdown; how many times as fast ours is, by GPU time."""
    machine_lines = ", ".join(f"{k} {v}" for k, v in content["machine"].items())
    text = f"{machine_lines}; {content['date']}\n\n"
    heads = ("work", "implementation", "GPU time, ms", "wall, ms", "peak above the inputs, MB")
    text += f"| {' | '.join(heads)} | ours is |\n|---|---|---|---|---|---|\n"
    first = {}
    for row in content["rows"]:
        first.setdefault((row["kind"], row["row"]), row["gpu_us"])
        times = row["gpu_us"] / first[row["kind"], row["row"]]
        text += (
            f"| {row['kind']}, {row['row']} | {row['implementation']} | {row['gpu_us'] / 1e3:.3f} "
            f"| {row['wall_us'] / 1e3:.3f} | {row['peak_bytes'] / 1e6:.1f} | {times:.2f}x |\n"
        )
    return text


if __name__ == "__main__":
    main()
