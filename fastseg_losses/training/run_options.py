"""Settings of what surrounds a training: its folder, its watching."""

from __future__ import annotations

import dataclasses

from fastseg_losses.training.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run writes, what it shows, when it ends early."""

    output_dir: str | None = option(
        "run",
        None,
        "the run's folder, which must not hold anything yet; default: a fresh runs/train-NNN",
        metavar="DIR",
    )
    dry_run: bool = option(
        "run",
        False,
        "check options, data and model, print the census, and end; nothing is written",
        parse=bool,
    )
    tensorboard: bool = option(
        "run", False, "write each epoch's metrics for TensorBoard too", parse=bool
    )
    check_every: int = option(
        "run", 50, "batches between two checks of the collapse monitor", parse=int
    )
    on_collapse: str = option(
        "run", "warn", "what to do when predictions collapse", choices=("warn", "stop")
    )
