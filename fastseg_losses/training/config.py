"""What a training run is: one frozen dataclass and its JSON form.

The fields of :class:`TrainConfig` are the single list of options. The command line is generated
from them (`command_line`), so that a new option is one field and nothing else. Nothing here imports
torch: ``train.py --help`` has to answer at once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastseg_losses.training.labels import MODES, Labels, default_ignore_index, labels_for
from fastseg_losses.training.settings import (
    COMBINED_WEIGHTS,
    LOSSES,
    SCHEDULES,
    SYNTHETIC_CLASSES,
    SYNTHETIC_DEFAULTS,
    check_settings,
)


def _option(
    group: str,
    default: Any,
    text: str,
    *,
    parse: type = str,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is also a command-line option."""
    metadata = {
        "group": group,
        "help": text,
        "parse": parse,
        "choices": choices,
        "metavar": metavar,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of one training run, resolved and checked.

    Raises:
        ValueError: A field is out of range; the message names it, what was expected, what came.
    """

    data: str | None = _option(
        "data",
        None,
        "parquet index with the columns image, mask, has_segmentation and optionally image_id, "
        "split; without it a synthetic set is generated",
        metavar="FILE",
    )
    val: str | None = _option(
        "data", None, "second parquet index, used for validation", metavar="FILE"
    )
    val_fraction: float = _option(
        "data",
        0.2,
        "share of the annotated rows drawn for validation where the index has no split column, "
        "above 0 and below 1",
        parse=float,
    )
    keep_unannotated: bool = _option(
        "data",
        False,
        "draw rows without annotation too; they stay masked out of loss and statistics",
        parse=bool,
    )
    allow_no_foreground: bool = _option(
        "data",
        False,
        "train even if there is nothing to learn from: no annotated training row has foreground, "
        "or all show one class (refused by default)",
        parse=bool,
    )
    allow_outside: bool = _option(
        "data",
        False,
        "let paths in the index point outside the index's own folder",
        parse=bool,
    )
    mode: str = _option(
        "data",
        "binary",
        "binary: foreground or not; multiclass: masks hold class ids",
        choices=MODES,
    )
    num_classes: int | None = _option(
        "data",
        None,
        "number of classes, with --mode multiclass: masks hold the ids 0 to N - 1, and class 0 "
        f"need not be a background; the synthetic set has {SYNTHETIC_CLASSES}",
        parse=int,
    )
    ignore_index: int | None = _option(
        "data",
        None,
        "mask value whose pixels count for nothing, with --mode multiclass (default: 255, or 65535 "
        "with more than 255 classes)",
        parse=int,
    )
    image_size: int = _option(
        "data", 256, "images are resized to SIZE x SIZE", parse=int, metavar="SIZE"
    )
    image_bits: int | None = _option(
        "data",
        None,
        "bits that 16-bit grey images use, 8 to 16 (default: the fewest of 8, 10, 12, 14, 16 that "
        "hold the set's largest value)",
        parse=int,
    )
    no_flips: bool = _option("data", False, "no random flips of the training images", parse=bool)
    num_workers: int = _option("data", 2, "loader processes; 0 loads in the main one", parse=int)
    loss: str = _option(
        "loss",
        "combined",
        "the training loss; bce is for --mode binary, ce (cross-entropy) for --mode multiclass",
        choices=LOSSES,
    )
    bce_weight: float | None = _option("loss", None, "weight in --loss combined", parse=float)
    dice_weight: float | None = _option("loss", None, "weight in --loss combined", parse=float)
    focal_weight: float | None = _option("loss", None, "weight in --loss combined", parse=float)
    iou_weight: float | None = _option("loss", None, "weight in --loss combined", parse=float)
    tversky_weight: float | None = _option("loss", None, "weight in --loss combined", parse=float)
    model: str | None = _option(
        "training",
        None,
        "your own net: a callable without arguments that returns a torch.nn.Module mapping "
        "(N, 3, H, W) to logits (N, 1, H, W), multiclass (N, C, H, W); default: the built-in "
        "LightweightUNet",
        metavar="MODULE:FACTORY",
    )
    epochs: int = _option("training", 50, "passes over the training rows", parse=int)
    max_steps: int | None = _option(
        "training", None, "end after N optimizer steps, whatever --epochs says", parse=int
    )
    patience: int | None = _option(
        "training", None, "end after N epochs without a better validation score", parse=int
    )
    batch_size: int = _option("training", 8, "images per step", parse=int)
    lr: float = _option("training", 1e-3, "learning rate of AdamW, at its highest", parse=float)
    schedule: str = _option(
        "training",
        "constant",
        "how the learning rate goes on: cosine and poly fall to 0 at the run's last step",
        choices=SCHEDULES,
    )
    warmup_steps: int = _option(
        "training", 0, "steps in which the learning rate rises to its height", parse=int
    )
    clip_grad: float | None = _option(
        "training",
        None,
        "the gradients' norm at most; their mean norm before that goes into metrics.csv",
        parse=float,
    )
    weight_decay: float = _option("training", 1e-2, "weight decay of AdamW", parse=float)
    seed: int = _option("training", 0, "same seed, same weights, bit by bit on the CPU", parse=int)
    device: str = _option(
        "training", "auto", "auto (CUDA where there is one), cpu, cuda, cuda:1", metavar="DEVICE"
    )
    output_dir: str | None = _option(
        "run",
        None,
        "the run's folder, which must not hold anything yet; default: a fresh runs/train-NNN",
        metavar="DIR",
    )
    dry_run: bool = _option(
        "run",
        False,
        "check options, data and model, print the census, and end; nothing is written",
        parse=bool,
    )
    tensorboard: bool = _option(
        "run", False, "write each epoch's metrics for TensorBoard too", parse=bool
    )
    check_every: int = _option(
        "run", 50, "batches between two checks of the collapse monitor", parse=int
    )
    on_collapse: str = _option(
        "run", "warn", "what to do when predictions collapse", choices=("warn", "stop")
    )

    def __post_init__(self) -> None:
        """Check ranges, so that nothing is written for a run that cannot be."""
        check_settings(self)

    @property
    def labels(self) -> Labels | None:
        """What the masks' values mean; None in binary mode."""
        return labels_for(self.mode, self.num_classes, self.ignore_index)

    @property
    def channels(self) -> int:
        """Channels of the net's logits."""
        return 1 if self.labels is None else self.labels.num_classes

    def weights(self) -> dict[str, float]:
        """The weights of the combined loss; none for any other."""
        if self.loss != "combined":
            return {}
        given = {name: getattr(self, name) for name in COMBINED_WEIGHTS}
        return {
            name: COMBINED_WEIGHTS[name] if value is None else value
            for name, value in given.items()
        }

    def loss_arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``get_loss_function(config.loss, ...)``."""
        labels = self.labels
        if labels is None:
            return self.weights()
        return self.weights() | {"mode": "multiclass", "ignore_index": labels.ignore_index}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; an unknown name is a ``ValueError``."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise ValueError(
                f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(names))}"
            )
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write the resolved settings as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read what :meth:`save` wrote."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))


def resolve(given: Mapping[str, Any]) -> TrainConfig:
    """Fill what was not given: the synthetic set's defaults without data, the weights by the loss.

    Args:
        given: The settings that the user chose, by field name.

    Returns:
        The complete configuration, as it is saved beside the run.
    """
    values = dict(given)
    if values.get("data") is None:
        values = SYNTHETIC_DEFAULTS | values
    if values.get("mode") == "multiclass":
        if values.get("num_classes") is None and values.get("data") is None:
            values["num_classes"] = SYNTHETIC_CLASSES
        if values.get("num_classes") is not None and values.get("ignore_index") is None:
            values["ignore_index"] = default_ignore_index(values["num_classes"])
    if values.get("loss", "combined") == "combined":
        missing = {n: w for n, w in COMBINED_WEIGHTS.items() if values.get(n) is None}
        values |= missing
    return TrainConfig.from_dict(values)
