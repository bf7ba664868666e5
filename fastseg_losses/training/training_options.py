"""Settings of the loss and of the training itself."""

from __future__ import annotations

import dataclasses

from fastseg_losses.training.options import option
from fastseg_losses.training.settings import LOSSES, PRECISIONS, SCHEDULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The loss, the net, and how the net is updated."""

    loss: str = option(
        "loss",
        "combined",
        "the training loss; bce is for --mode binary, ce (cross-entropy) for --mode multiclass",
        choices=LOSSES,
    )
    bce_weight: float | None = option("loss", None, "weight in --loss combined", parse=float)
    dice_weight: float | None = option("loss", None, "weight in --loss combined", parse=float)
    focal_weight: float | None = option("loss", None, "weight in --loss combined", parse=float)
    iou_weight: float | None = option("loss", None, "weight in --loss combined", parse=float)
    tversky_weight: float | None = option("loss", None, "weight in --loss combined", parse=float)
    pseudo_weight: float | None = option(
        "loss",
        None,
        "train on rows with a pseudo-mask too (`train.py pseudo-label` makes them): the loss is "
        "that of the annotated rows plus N times that of these; without it they are not used",
        parse=float,
    )
    pseudo_confidence: float = option(
        "loss",
        0.6,
        "pixels of a pseudo-mask whose confidence is lower count for nothing, 0 to 1",
        parse=float,
    )
    batch_dice: bool = option(
        "loss",
        False,
        "Dice, IoU and Tversky over the whole batch, under torchrun that of all processes, and not "
        "image by image",
        parse=bool,
    )
    model: str | None = option(
        "training",
        None,
        "your own net: a callable without arguments that returns a torch.nn.Module mapping "
        "(N, 3, H, W) to logits (N, 1, H, W), multiclass (N, C, H, W), or 1/2, 1/3, ... as high "
        "and wide; default: the built-in LightweightUNet",
        metavar="MODULE:FACTORY",
    )
    head_stride: int | None = option(
        "training",
        None,
        "the built-in net's logits have 1/N of the image's height and width, which the loss "
        "upsamples itself: 1, 2, 4 or 8; larger is faster and loses small objects (default: 4 from "
        "--image-size 256 on, 2 from 128 on, below that and for sizes that it does not divide 1)",
        parse=int,
    )
    epochs: int = option("training", 50, "passes over the training rows", parse=int)
    max_steps: int | None = option(
        "training", None, "end after N optimizer steps, whatever --epochs says", parse=int
    )
    patience: int | None = option(
        "training", None, "end after N epochs without a better validation score", parse=int
    )
    min_epochs: int = option("training", 0, "epochs before --patience may end a run", parse=int)
    batch_size: int = option(
        "training", 8, "images per batch (under torchrun: in each process)", parse=int
    )
    accumulate: int = option(
        "training",
        1,
        "batches per optimizer step; each counts by what is annotated in it",
        parse=int,
    )
    lr: float = option("training", 1e-3, "learning rate of AdamW, at its highest", parse=float)
    schedule: str = option(
        "training",
        "constant",
        "how the learning rate goes on: cosine and poly fall to 0 at the run's last step",
        choices=SCHEDULES,
    )
    warmup_steps: int = option(
        "training", 0, "steps in which the learning rate rises to its height", parse=int
    )
    clip_grad: float | None = option(
        "training",
        None,
        "the gradients' norm at most; their mean norm before that goes into metrics.csv",
        parse=float,
    )
    ema: float | None = option(
        "training",
        None,
        "validate and save an exponential moving average of the weights too, which keeps this "
        "share of itself at each step (0.999, for instance)",
        parse=float,
    )
    amp: str = option(
        "training",
        "auto",
        "precision of the net's forward; the loss is always summed in float32. auto: bf16 on CUDA "
        "devices that have it, else off; fp16 scales the loss",
        choices=PRECISIONS,
    )
    compile: bool = option("training", False, "torch.compile the net", parse=bool)
    overfit_batches: int | None = option(
        "training",
        None,
        "train and validate on the first N batches of annotated rows with foreground, unshuffled "
        "and unaugmented: a net that cannot learn them has a fault in code or labels",
        parse=int,
    )
    weight_decay: float = option("training", 1e-2, "weight decay of AdamW", parse=float)
    seed: int = option("training", 0, "same seed, same weights, bit by bit on the CPU", parse=int)
    device: str = option(
        "training", "auto", "auto (CUDA where there is one), cpu, cuda, cuda:1", metavar="DEVICE"
    )
