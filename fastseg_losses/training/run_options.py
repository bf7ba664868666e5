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
    resume: str | None = option(
        "run",
        None,
        "go on with the run in this folder where its last.pt is, with its settings; options beside "
        "it change them",
        metavar="DIR",
    )
    save_every: int | None = option(
        "run", None, "write last.pt every N steps too, not only after each epoch", parse=int
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
    profile: bool = option(
        "run", False, "record ten steps with torch's profiler, into profile/", parse=bool
    )
    check_every: int = option(
        "run", 50, "batches between two checks of the collapse monitor", parse=int
    )
    on_collapse: str = option(
        "run", "warn", "what to do when predictions collapse", choices=("warn", "stop")
    )
