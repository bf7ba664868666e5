"""What a training run is: one frozen dataclass and its JSON form.

The fields of its bases (`data_options`, `training_options`, `run_options`) are the single list
of options. The command line is generated from them (`command_line`), so that a new option is one
field and nothing else. Nothing here imports torch: ``train.py --help`` has to answer at once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastseg_losses.training.data_options import DataOptions
from fastseg_losses.training.labels import BINARY_IGNORED, Labels, default_ignore_index, labels_for
from fastseg_losses.training.run_folder import write_atomically
from fastseg_losses.training.run_options import RunOptions
from fastseg_losses.training.settings import (
    AUGMENT_STRENGTHS,
    COMBINED_WEIGHTS,
    SYNTHETIC_CLASSES,
    SYNTHETIC_DEFAULTS,
    check_settings,
    usual_head_stride,
)
from fastseg_losses.training.training_options import TrainingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunOptions, TrainingOptions, DataOptions):
    """Every setting of one training run, resolved and checked.

    Raises:
        ValueError: A field is out of range; the message names it, what was expected, what came.
    """

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

    @property
    def ignored_value(self) -> int:
        """What the pixels of a sample's mask hold that count for nothing."""
        return BINARY_IGNORED if self.labels is None else self.labels.ignore_index

    def weights(self) -> dict[str, float]:
        """The weights of the combined loss; none for any other."""
        if self.loss != "combined":
            return {}
        return _given_or(COMBINED_WEIGHTS, dataclasses.asdict(self))

    def augment_strengths(self) -> dict[str, float]:
        """How strong each augmentation is; none is but for ``--augment full``."""
        if self.augment != "full":
            return {}
        return _given_or(AUGMENT_STRENGTHS, dataclasses.asdict(self))

    def loss_arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``get_loss_function(config.loss, ...)``.

        Logits of a lower resolution are upsampled inside the loss; those of the masks' size are
        taken as they are.
        """
        arguments: dict[str, Any] = self.weights() | {"ignore_index": self.ignored_value}
        arguments["upsample"] = "bilinear"
        if self.batch_dice:
            arguments["batch"] = True
        return arguments if self.labels is None else arguments | {"mode": "multiclass"}

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
        """Write the resolved settings as JSON, ready for ``--config`` of another run.

        So without the folder, which is where the file is.
        """
        values = self.to_dict() | {"output_dir": None, "resume": None}
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))

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
        values |= _given_or(COMBINED_WEIGHTS, values)
    if values.get("augment") == "full":
        values |= _given_or(AUGMENT_STRENGTHS, values)
    if values.get("model") is None and values.get("head_stride") is None:
        size = values.get("image_size", TrainConfig.image_size)
        values["head_stride"] = usual_head_stride(size)
    return TrainConfig.from_dict(values)


def _given_or(defaults: Mapping[str, float], given: Mapping[str, Any]) -> dict[str, float]:
    """What was given of these settings; the default where nothing, or None, was."""
    values = {name: given.get(name) for name in defaults}
    return {name: defaults[name] if v is None else v for name, v in values.items()}
