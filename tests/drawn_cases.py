"""Whole calls of the losses, drawn at random: what the tests of numbers run through.

A `Case` is a loss with its arguments, shapes, dtypes, memory layouts, masks and values. Hypothesis
draws it; its tensors come from a seed, so that shrinking stays fast.

Kernels are compiled for some of that (which terms, which masks, which dtypes, C in multiclass
mode), so for them it comes from `pinned`: one choice for each way of running a loss, the same in
every example. Sizes, values, masks and numbers vary freely in both.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from drawn_tensors import draw_size, laid_out, make_ids, make_logits, make_masks, make_valid
from hypothesis import strategies as st

from fastseg_losses import get_loss_function
from fastseg_losses.base import SegmentationLoss

NAMES = ("bce", "dice", "iou", "tversky", "focal", "combined")
MODES = ("binary", "multilabel", "multiclass")
REDUCTIONS = ("mean", "sum", "none")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Pick = Callable[[Sequence[Any]], Any]


class Way(NamedTuple):
    """What is drawn evenly: each of these is seen in every run."""

    name: str
    mode: str
    dtype: torch.dtype
    reduction: str


def ways(dtypes: Sequence[torch.dtype]) -> list[Way]:
    return [Way(*each) for each in itertools.product(NAMES, MODES, dtypes, REDUCTIONS)]


@dataclass(frozen=True)
class Case:
    """One call. `batches` of it are judged together: see drawn_check.py."""

    name: str
    arguments: dict[str, Any]
    shared: dict[str, Any]
    dtype: torch.dtype
    shape: tuple[int, ...]  # of the logits
    size: tuple[int, ...]  # of the targets' space
    values: str  # which logits, see LOGITS
    soft: bool
    targets: torch.dtype
    valid: str  # "none", "sample", "pixel"
    layouts: tuple[str, str]  # of logits, of targets and valid
    batches: int
    seed: int

    def criterion(self, backend: str) -> SegmentationLoss:
        return get_loss_function(self.name, **self.arguments, **self.shared, backend=backend)

    def inputs(self, batch: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Logits, targets, valid and a seed for whatever else is random."""
        torch.manual_seed(1000 * self.seed + batch)
        multiclass = self.shared["mode"] == "multiclass"
        N, C = self.shape[0], self.shape[1] if self.shared["mode"] != "binary" else 1
        ignore = self.shared.get("ignore_index")
        logits = make_logits(self.shape, self.values).to(self.dtype)
        if multiclass and not self.soft:
            targets = make_ids((N, *self.size), C, ignore)
        else:
            channels = self.shape[1 : len(self.shape) - len(self.size)]
            targets = make_masks((N, *channels, *self.size), self.soft, multiclass, ignore)
        valid = make_valid((N, *self.size), self.valid)
        x = laid_out(logits.to(device), self.layouts[0])
        t = laid_out(targets.to(device, self.targets), self.layouts[1])
        return x, t, None if valid is None else laid_out(valid.to(device), self.layouts[1])

    def two_sided(self) -> "Case | None":
        """The same with a Tversky term that counts FP and FN, if it has one that does not."""
        prefix = "tversky_" if self.name == "combined" else ""
        alpha, beta = f"{prefix}alpha", f"{prefix}beta"
        weights = self.arguments.get(alpha), self.arguments.get(beta)
        if weights not in ONE_SIDED:
            return None
        return replace(self, arguments={**self.arguments, alpha: 0.5, beta: 0.5})

    @property
    def pixels(self) -> int:
        return self.shape[0] * torch.Size(self.size).numel()


# ---- what kernels are compiled for: `pick` chooses; `any_` draws what they take as it comes


def term_arguments(name: str, softmax: bool, C: int, pick: Pick, any_: Pick) -> dict[str, Any]:
    """Arguments of one term."""
    each_class = [(0.5, 2.0, 0.0, 1.0)[c % 4] for c in range(C)]
    if name == "bce":
        arguments = {"label_smoothing": any_([0.1, 0.5, 1.0]) if pick([0, 0, 1]) else 0.0}
        if not softmax and pick([False, True]):
            arguments["pos_weight"] = any_([0.0, 0.5, 3.0, each_class])
        return arguments
    if name == "focal":
        # 2 has kernels of its own
        gamma = 2.0 if pick([True, False, False]) else any_([0.0, 0.5, 1.0, 1.5, 5.0])
        alpha = any_([None, 0.0, 0.25, 0.6, 1.0])
        if softmax:
            alpha = each_class if pick([False, True]) else None
        return {"alpha": alpha, "gamma": gamma}
    arguments = {
        "smooth": any_([0.0, 0.0, 1e-5, 1.0, 10.0]),
        "log_loss": pick([False, False, True]),
    }
    if name == "tversky":
        arguments["alpha"], arguments["beta"] = any_(
            [*ONE_SIDED, (0.3, 0.7), (1.0, 1.0), (2.0, 0.5)]
        )
        # No root of a one-sided loss that is 0: of one rounding of the score, 6e-8, it makes 2e-4.
        roots = [] if (arguments["alpha"], arguments["beta"]) in ONE_SIDED else [0.5, 0.75]
        arguments["gamma"] = any_([*roots, 4 / 3, 2.0, 5.0]) if pick([False, True]) else 1.0
    return arguments


ONE_SIDED = [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)]  # weights of FP and FN in Tversky: see two_sided

MIXTURES = [
    {},
    {"iou": 0.3, "tversky": 0.2},
    {"focal": 0.0},
    {"bce": 0.0, "dice": 0.0, "tversky": 1.0},
    {"dice": 0.0, "iou": 1.5},
    {"dice": 0.0},
]


def own_arguments(name: str, softmax: bool, C: int, pick: Pick, any_: Pick) -> dict[str, Any]:
    """A loss's own arguments."""
    if name != "combined":
        return term_arguments(name, softmax, C, pick, any_)
    weights = {"bce": 0.4, "dice": 0.4, "focal": 0.2, "iou": 0.0, "tversky": 0.0, **pick(MIXTURES)}
    arguments: dict[str, Any] = {}
    for term, weight in weights.items():
        arguments[f"{term}_weight"] = weight
        if weight:
            own = term_arguments(term, softmax, C, pick, any_)
            arguments.update({f"{term}_{key}": value for key, value in own.items()})
    return arguments


FEW_CLASSES = [2, 3, 4, 5, 7, 8, 13, 16, 19, 21, 33, 64]
MANY_CLASSES = [100, 128, 150, 255, 256]
LAYOUTS = ["contiguous", "contiguous", "channels_last", "sliced", "cropped", "transposed"]
LAYOUTS += ["expanded", "odd address"]
HARD = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
HARD += [torch.float32, torch.bfloat16]
SOFT = [torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64]


def targets_of(mode: str, C: int, pick: Pick) -> tuple[bool, torch.dtype, int | None]:
    """Whether they are soft, their dtype, and the value that is ignored."""
    soft = pick([False, False, True])
    ids = mode == "multiclass" and not soft
    dtype = pick(SOFT if soft else [torch.uint8, torch.int16, torch.int32, torch.int64])
    if not soft and not ids:
        dtype = pick(HARD)
    if ids and C == 256 and dtype == torch.uint8:
        dtype = torch.int16  # 255 is a class, and uint8 has no value left to ignore
    # bool has no value left either, and probabilities of classes are ignored by `valid` alone
    possible = dtype != torch.bool and not (soft and mode == "multiclass")
    ignored = possible and pick([False, False, True])
    return soft, dtype, (255 if dtype == torch.uint8 else -1) if ignored else None


class Limits(NamedTuple):
    """How large a case may be."""

    elements: int  # N C P, about
    groups: int  # N C
    batches: int
    upsample: bool
    kernels: bool  # cases that the kernels take: low-resolution logits in 2-D alone
    variants: int  # of what kernels are compiled for, for each way; 0: any number


TORCH = Limits(1 << 14, 1280, 16, True, False, 0)
# The interpreter takes 0.1 s for a group, and 3 s for a launch of low-resolution logits, which
# tests/test_ops_upsampled.py has.
INTERPRETED = Limits(600, 8, 2, False, True, 0)
DEVICE = Limits(1 << 18, 1280, 16, True, True, 1)

RATIOS = [2, 3, 4, 8]
LOW_SIZES = [(1, 1), (1, 7), (3, 5), (5, 16), (8, 8), (13, 3), (17, 40), (31, 32)]


def draw_channels(mode: str, limits: Limits, pick: Pick, any_: Pick) -> int:
    if mode == "binary":
        return 1
    if mode == "multiclass" and limits.kernels:  # they are compiled for each number of classes
        return pick([c for c in [*FEW_CLASSES * 2, *MANY_CLASSES] if c <= limits.groups])
    least = 2 if mode == "multiclass" else 1
    most = min(256, limits.groups)
    return any_([c for c in (least, *FEW_CLASSES, any_(range(least, most + 1))) if c <= most])


def draw_case(way: Way, pick: Pick, any_: Pick, limits: Limits) -> Case:
    """A case of this way; `pick` and `any_` choose from a list."""
    mode, kernels = way.mode, limits.kernels
    channels = draw_channels(mode, limits, pick, any_)
    N = any_([n for n in (1, 2, 3, 5) if n * channels <= limits.groups])
    activation = pick([None, None, "sigmoid"]) if mode == "multiclass" else None
    softmax = mode == "multiclass" and activation is None
    name = "ce" if way.name == "bce" and softmax else way.name
    arguments = own_arguments(way.name, softmax, channels, pick, any_)
    pointwise = name in ("bce", "ce", "focal") or name == "combined"
    soft, targets, ignored = targets_of(mode, channels, pick)
    shared: dict[str, Any] = {"mode": mode, "reduction": way.reduction, "activation": activation}
    shared["ignore_index"] = ignored
    shared["absent"] = pick(["keep", "keep", "skip"])
    # pointwise and region terms have no common shape under "none" with batch: an error, see
    # tests/test_losses.py
    shared["batch"] = pick([False, True]) and not (name == "combined" and way.reduction == "none")
    if pick([False, False, True]):
        shared["class_weights"] = [(1.0, 0.5, 0.0, 3.0)[c % 4] for c in range(channels)]
    if mode == "multiclass" and not (name != "combined" and pointwise):
        shared["include_background"] = pick([True, True, False])
    upsample = pick([None] * 5 + ["bilinear", "nearest"]) if limits.upsample else None
    axes = 2 if upsample and kernels else any_([1, 2, 2, 3])
    size = draw_size(axes, limits.elements // (N * channels), any_)
    low = size
    if upsample:
        shared["upsample"] = upsample
        low, size = draw_low(size, pick, any_, kernels=kernels)
        shared["align_corners"] = upsample == "bilinear" and pick([False, False, True])
    # Not (N, *spatial) of three axes, a warning in binary mode as it may be meant as classes, nor
    # low-resolution logits whose first axis is one pixel: (N, 1, *) is read as a channel.
    bare = mode == "binary" and axes < 3 and not (upsample and low[0] == 1) and any_([False, True])
    shape = (N, *low) if bare else (N, channels, *low)
    case = Case(
        name=name,
        arguments=arguments,
        shared=shared,
        dtype=way.dtype,
        shape=shape,
        size=size,
        # Not +-1e4 in low resolution: between them float32 leaves 1e-3 in a logit near 0, and
        # whether PyTorch's error there or ours is the larger is chance.
        values=any_(["small", "usual", "usual", "large", *["saturated"] * (not upsample)]),
        soft=soft,
        targets=targets,
        valid=pick(["none", "sample", "pixel"]),
        layouts=(pick(LAYOUTS), pick(LAYOUTS)),
        batches=1,
        seed=any_(range(1 << 16)),
    )
    return replace(case, batches=max(1, min(limits.batches, PIXELS // case.pixels)))


PIXELS = 512  # that a case has, of all its batches: see drawn_check.py


def draw_low(
    size: tuple[int, ...], pick: Pick, any_: Pick, *, kernels: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A lower resolution and the full one: any, or those that kernels are compiled for."""
    if not kernels and any_([True, False]):
        return tuple(any_(range(1, n + 1)) for n in size), size
    low = tuple(any_(range(1, n + 1)) for n in size)
    if kernels:
        low = any_([pick(LOW_SIZES), pick(LOW_SIZES)])
    return low, tuple(n * pick(RATIOS) for n in low)


def pinned(way: Way, variant: int) -> Pick:
    """Choices that depend on the way alone, so that a kernel is compiled once and used often."""
    return random.Random(f"{way} {variant}").choice


@st.composite
def cases(draw, of: Sequence[Way], limits: Limits) -> Case:
    """Cases of these ways."""

    def any_(choices: Sequence[Any]) -> Any:
        return draw(st.sampled_from(choices))

    way = any_(of)
    pick = pinned(way, any_(range(limits.variants))) if limits.variants else any_
    return draw_case(way, pick, any_, limits)
