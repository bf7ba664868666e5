"""What a loss is: frozen descriptions that reference, kernels and operators all read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from functools import lru_cache
from numbers import Real
from typing import Any

from fastseg_losses.arguments import check_flag, check_number


def is_softmax(mode: str = "binary", activation: str | None = None, **_: Any) -> bool:
    """Whether these of the shared arguments ask for a softmax over the classes."""
    return mode == "multiclass" and activation is None


@dataclass(frozen=True)
class PointTerm:
    """A pointwise term: `bce`, `ce` or `focal`, weighted, with its hyper-parameters.

    Attributes:
        name: "bce", "ce" (its softmax form) or "focal".
        weight: factor in the combination, at least 0.
        label_smoothing: not for focal; the target becomes t * (1 - e) + e / 2, or + e / C for ce.
        alpha: focal with a sigmoid only; weight of the positive class, or None for no class
            balance. With a softmax the weights of the classes are a tensor beside the spec.
        gamma: focal only; exponent of (1 - p_t), at least 0.
        miss: focal with a sigmoid only; what 1 - p_t is where targets are soft. "product":
            p + t - 2 p t; "likelihood": 1 - exp(-bce); "margin": sigmoid(x (1 - 2 t)).
    """

    name: str
    weight: float = 1.0
    label_smoothing: float = 0.0
    alpha: float | None = None
    gamma: float = 0.0
    miss: str = "product"

    def __str__(self) -> str:
        """The name and what it depends on."""
        smoothing = f"label_smoothing={self.label_smoothing:g}" if self.label_smoothing else ""
        details = f"alpha={self.alpha}, gamma={self.gamma:g}" if self.name == "focal" else smoothing
        return f"{self.name}({details})" if details else self.name


@dataclass(frozen=True)
class RegionTerm:
    """A region term: ((offset - score) or -log(score)) ** gamma.

    score = (I + s) / (I + alpha FP + beta FN + s). Dice is alpha = beta = 0.5 with half its
    `smooth`, IoU is alpha = beta = 1: one formula serves all three.

    The last three are for other libraries' variants (see compat).

    Attributes:
        smooth_dr: the s of the denominator where it is another; None: the same.
        floor: least denominator, and least score under a logarithm; 0: a denominator of 0 makes
            the score 1.
        offset: 1, or 0 for the negative score itself.
    """

    name: str
    weight: float
    alpha: float
    beta: float
    smooth: float
    gamma: float = 1.0
    log_loss: bool = False
    smooth_dr: float | None = None
    floor: float = 0.0
    offset: float = 1.0

    @property
    def numbers(self) -> tuple[float, ...]:
        """Alpha, beta, both s, gamma, floor, offset: what the kernels take."""
        below = self.smooth if self.smooth_dr is None else self.smooth_dr
        last = (self.gamma, self.floor, self.offset)
        return self.alpha, self.beta, self.smooth, below, *last

    def __str__(self) -> str:
        """The name and what it depends on, in the words of the public classes."""
        smooth = self.smooth * 2 if self.name == "dice" else self.smooth
        details = f"smooth={smooth:g}"
        if self.name == "tversky":
            details = f"alpha={self.alpha:g}, beta={self.beta:g}, {details}, gamma={self.gamma:g}"
        return f"{self.name}({details}{', log_loss=True' if self.log_loss else ''})"


@dataclass(frozen=True)
class LossSpec:
    """A whole loss: its terms and how they are reduced.

    Tensors (class weights, pos_weight) travel beside it. `reduction` may also be "sums", which asks
    for the region sums themselves instead of a loss. Other libraries' variants (see compat) have:

    Attributes:
        activation: also "identity": the logits are probabilities; for region terms alone.
        absent: also "zero", groups without a target lose nothing but count, or "all": every group
            counts, even one without a valid pixel, and a mean of what each class has (so not of a
            softmax's pointwise terms) is not divided by the classes' weights.
        overlap: I is the sum of p t ("product") or of min(p, t) ("minimum").
        squared: P and T are the sums of squares.
        upsample: None, or how logits of a lower resolution reach the targets' size.
        align_corners: of `torch.nn.functional.interpolate`, for that.
    """

    mode: str
    points: tuple[PointTerm, ...] = ()
    regions: tuple[RegionTerm, ...] = ()
    reduction: str = "mean"
    ignore_index: int | None = None
    include_background: bool = True
    batch: bool = False
    absent: str = "keep"
    activation: str | None = None
    overlap: str = "product"
    squared: bool = False
    upsample: str | None = None
    align_corners: bool = False
    # Fields and not properties: torch.compile cannot call a property of a spec that it made.
    softmax: bool = field(init=False, compare=False, repr=False)
    term_names: tuple[str, ...] = field(init=False, compare=False, repr=False)
    key: str = field(init=False, compare=False, repr=False)
    full: LossSpec = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Fill in what follows from the rest.

        `softmax`: the classes share one, else each has a sigmoid of its own; `term_names`, in the
        statistics' order; `key`, the operators' text form; `full`, the same loss of logits that
        have the targets' size.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclass_fields(self) if f.init}
        fields["points"] = [asdict(term) for term in self.points]
        fields["regions"] = [asdict(term) for term in self.regions]
        object.__setattr__(self, "key", json.dumps(fields, sort_keys=True))
        object.__setattr__(self, "softmax", is_softmax(self.mode, self.activation))
        object.__setattr__(self, "term_names", tuple(term.name for term in self.terms))
        full = self if self.upsample is None else replace(self, upsample=None, align_corners=False)
        object.__setattr__(self, "full", full)

    @property
    def terms(self) -> tuple[PointTerm | RegionTerm, ...]:
        """All terms, in the order in which the statistics list them."""
        return (*self.points, *self.regions)

    @staticmethod
    @lru_cache(maxsize=1024)
    def from_key(key: str) -> LossSpec:
        """The spec whose `key` this is."""
        fields = json.loads(key)
        fields["points"] = tuple(PointTerm(**t) for t in fields["points"])
        fields["regions"] = tuple(RegionTerm(**t) for t in fields["regions"])
        return LossSpec(**fields)


# `prefix` is what the combined loss puts before a parameter's name.


def bce_term(weight: float = 1.0, label_smoothing: float = 0.0, *, prefix: str = "") -> PointTerm:
    """Binary cross-entropy."""
    check_number(prefix + "label_smoothing", label_smoothing, 0.0, 1.0)
    return PointTerm("bce", weight, label_smoothing=float(label_smoothing))


# The binary default of the focal loss. An object of its own, known by identity: with a softmax the
# default is no balance, while a 0.25 that the caller wrote is refused there.
BINARY_ALPHA = float("0.25")


def split_alpha(
    alpha: float | Sequence[float] | None, shared: Mapping[str, Any], *, prefix: str = ""
) -> tuple[float | None, Sequence[float] | None]:
    """The focal loss's alpha as (the positive class's, each class's): one of them, or neither.

    Raises:
        TypeError: a sequence where a number is expected.
        ValueError: a number where each class needs its own.
    """
    if isinstance(alpha, str):
        check_number(prefix + "alpha", alpha, 0.0, 1.0)
    softmax = is_softmax(**shared)
    scalar = isinstance(alpha, Real) or alpha is None
    if softmax and alpha is not BINARY_ALPHA:
        if alpha is not None and scalar:
            raise ValueError(
                f"{prefix}alpha: expected a sequence, one value per class, or None with a softmax "
                f"over the classes, got {alpha!r}"
            )
        return None, alpha  # type: ignore[return-value]
    if not scalar:
        raise TypeError(
            f"{prefix}alpha: a sequence (one value per class) is for mode='multiclass'; expected a "
            f"float or None, got {alpha!r}"
        )
    return (None if softmax else alpha), None  # type: ignore[return-value]


def focal_term(
    weight: float = 1.0, alpha: float | None = BINARY_ALPHA, gamma: float = 2.0, *, prefix: str = ""
) -> PointTerm:
    """Focal loss; alpha None leaves the classes unbalanced."""
    if alpha is not None:
        check_number(prefix + "alpha", alpha, 0.0, 1.0)
        alpha = float(alpha)
    check_number(prefix + "gamma", gamma, 0.0, math.inf)
    return PointTerm("focal", weight, alpha=alpha, gamma=float(gamma))


def dice_term(
    weight: float = 1.0, smooth: float = 1.0, log_loss: bool = False, *, prefix: str = ""
) -> RegionTerm:
    """Dice, (2I + s) / (P + T + s): the Tversky score at alpha = beta = 0.5 and s / 2."""
    check_number(prefix + "smooth", smooth, 0.0, math.inf)
    check_flag(prefix + "log_loss", log_loss)
    return RegionTerm("dice", weight, 0.5, 0.5, smooth / 2, log_loss=log_loss)


def iou_term(
    weight: float = 1.0, smooth: float = 1.0, log_loss: bool = False, *, prefix: str = ""
) -> RegionTerm:
    """IoU (Jaccard), (I + s) / (P + T - I + s): the Tversky score at alpha = beta = 1."""
    check_number(prefix + "smooth", smooth, 0.0, math.inf)
    check_flag(prefix + "log_loss", log_loss)
    return RegionTerm("iou", weight, 1.0, 1.0, float(smooth), log_loss=log_loss)


def tversky_term(
    weight: float = 1.0,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    gamma: float = 1.0,
    log_loss: bool = False,
    *,
    prefix: str = "",
) -> RegionTerm:
    """Tversky; alpha weighs false positives, beta false negatives; gamma: focal, per group."""
    for name, value in (("alpha", alpha), ("beta", beta), ("smooth", smooth)):
        check_number(prefix + name, value, 0.0, math.inf)
    check_number(prefix + "gamma", gamma, 0.0, math.inf, above=True)
    check_flag(prefix + "log_loss", log_loss)
    numbers = (float(alpha), float(beta), float(smooth), float(gamma))
    return RegionTerm("tversky", weight, *numbers, log_loss)
