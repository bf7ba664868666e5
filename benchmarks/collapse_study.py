"""What undrawn masks do to a net under each loss: python benchmarks/collapse_study.py INDEX.

Trains with 0, 30, 60 and 100 % of the training rows not annotated, read as empty or ignored, under
five losses and several seeds, and on a set with 0.2 % foreground where every mask is right. Writes
the results as JSON and, from it, the table of docs/TRAINING_FIX.md, a longer one beside the JSON,
and the picture. INDEX is a parquet index (docs/trainer.md) whose rows are all annotated.

On a machine with PyTorch alone, decode elsewhere and bring the file:

    python benchmarks/collapse_study.py INDEX --pack pixels.npz
    python benchmarks/collapse_study.py pixels.npz --jobs 12 --output h100-collapse.json --no-report
    python benchmarks/collapse_study.py --from-json benchmarks/results/h100-collapse.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from collapse_data import load, pack
from collapse_report import read, write_report
from collapse_runs import LOSSES, Cell, Settings, all_cells, run_cell, start_worker

import fastseg_losses

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Pack, run, report."""
    cli = parser()
    options = cli.parse_args(arguments)
    if options.from_json is not None:
        write_report(options.from_json, ROOT)
        return 0
    if options.index is None or (options.pack is None and options.output is None):
        cli.error("expected INDEX with --output or --pack, or --from-json")
    if options.pack is not None:
        pack(options.index, options.pack, size=options.size, losses=LOSSES)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        packed = options.index
        if packed.suffix != ".npz":
            packed = Path(folder) / "pixels.npz"
            pack(options.index, packed, size=options.size, losses=LOSSES)
        study(packed, options)
    if not options.no_report:
        write_report(options.output, ROOT)
    return 0


def study(packed: Path, options: argparse.Namespace) -> None:
    """Run every chosen cell that the output does not hold yet; the JSON is written after each.

    Raises:
        ValueError: the output holds results of other settings or of another machine.
    """
    found = load(packed)
    sets = found.sets
    settings = Settings(
        size=sets["nuclei"].images.shape[-1],
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        warmup_steps=options.steps // 10,
        check_every=options.check_every,
        widths=options.widths,
    )
    cells = [cell for cell in all_cells(options.seeds) if is_chosen(cell, options.only)]
    content = {
        "machine": machine(options.device),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "settings": asdict(settings),
        "losses": LOSSES,
        "sets": {
            name: {
                "train_rows": int((~s.is_val).sum()),
                "val_rows": int(s.is_val.sum()),
                "train_foreground": round(float(s.masks[~s.is_val].mean()), 6),
                "val_foreground": round(float(s.masks[s.is_val].mean()), 6),
                "train_empty": int((~s.masks[~s.is_val].any((1, 2, 3))).sum()),
            }
            for name, s in sets.items()
        },
        "rows": [],
    }
    if not found.refusals.keys() >= {cell.loss for cell in cells}:
        raise ValueError(f"{packed}: expected a refusal of each loss; --pack writes them")
    done = earlier(options.output, content)
    missing = [cell for cell in cells if cell not in done]
    pool = ProcessPoolExecutor(
        options.jobs,
        get_context("spawn"),  # CUDA does not survive a fork
        start_worker,
        (packed, options.device, options.threads),
    )
    with pool:
        began = time.monotonic()
        started = {pool.submit(run_cell, cell, settings): cell for cell in missing}
        failed: list[BaseException] = []
        for future in as_completed(started):
            error = future.exception()
            if error is not None:  # the other runs are worth having all the same
                failed.append(error)
                continue
            done[started[future]] = future.result()
            every = all_cells(1 + max(cell.seed for cell in done))
            content["rows"] = [done[cell] for cell in every if cell in done]
            write_json(options.output, content)
            if len(done) % 10 == 0 or done.keys() >= set(cells):
                print(f"{len(done)} runs, {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(missing)} runs failed") from failed[0]


def earlier(output: Path, content: dict[str, Any]) -> dict[Cell, dict[str, Any]]:
    """The runs of a study that was cut off, by cell."""
    if not output.exists():
        return {}
    found = read(output)
    for key in ("machine", "settings", "losses", "sets"):
        if json.loads(json.dumps(content[key])) != found[key]:
            raise ValueError(f"{output}: expected a new file or results of the same {key}")
    return {Cell(*(row[name] for name in Cell._fields)): row for row in found["rows"]}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One line for each run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, allow_nan=False) for row in content["rows"]]
    head = json.dumps(content | {"rows": []}, indent=1, allow_nan=False)
    text = head.replace('"rows": []', '"rows": [\n' + ",\n".join(lines) + "\n ]")
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def is_chosen(cell: Cell, only: list[str]) -> bool:
    """Whether a cell is among the named ones.

    Args:
        cell: the cell.
        only: data, loss, or share and reading as in 60-empty; several with commas between them
            have to be true at once. Empty: every cell is.
    """
    names = {cell.data, cell.loss, f"{100 * cell.share:.0f}-{cell.reading}"}
    return not only or any(set(item.split(",")) <= names for item in only)


def machine(device: str) -> dict[str, Any]:
    """The device and the versions."""
    from importlib.metadata import version

    kind = torch.device(device).type
    return {
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else kind,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": version("triton"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "fastseg-losses": fastseg_losses.__version__,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    cli = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    has_gpu = torch.cuda.is_available()
    cli.add_argument("index", type=Path, nargs="?", help="a parquet index, or what --pack wrote")
    cli.add_argument("--output", type=Path, metavar="FILE.json", help="where the results go")
    cli.add_argument("--pack", type=Path, metavar="FILE.npz", help="decode into this file and end")
    cli.add_argument("--from-json", type=Path, metavar="FILE.json", help="write the report alone")
    cli.add_argument("--no-report", action="store_true", help="leave the report for --from-json")
    cli.add_argument("--seeds", type=int, default=3)
    cli.add_argument("--steps", type=int, default=Settings.steps)
    cli.add_argument("--batch-size", type=int, default=Settings.batch_size)
    cli.add_argument("--lr", type=float, default=Settings.lr, help="highest learning rate")
    cli.add_argument("--check-every", type=int, default=Settings.check_every, help="the monitor's")
    cli.add_argument("--size", type=int, default=64, help="of the images, when they are decoded")
    cli.add_argument("--device", default="cuda" if has_gpu else "cpu")
    cli.add_argument("--jobs", type=int, default=1, help="processes that train side by side")
    cli.add_argument("--threads", type=int, default=1, help="of each process, on the CPU")
    cli.add_argument(
        "--widths", type=lambda t: tuple(map(int, t.split(","))), default=Settings.widths
    )
    cli.add_argument("--only", nargs="*", default=[], help="e.g. bce sparse 60-empty,dice")
    return cli


if __name__ == "__main__":
    sys.exit(main())
