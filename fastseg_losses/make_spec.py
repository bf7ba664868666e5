"""The arguments that all losses share, checked; with the terms they make a `LossSpec`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastseg_losses.arguments import MODES, REDUCTIONS, UPSAMPLES, check_choice, check_flag
from fastseg_losses.spec import LossSpec, PointTerm, RegionTerm, is_softmax


def make_spec(
    points: Sequence[PointTerm] = (),
    regions: Sequence[RegionTerm] = (),
    *,
    mode: str,
    reduction: str,
    ignore_index: int | None,
    include_background: bool,
    batch: bool,
    absent: str,
    activation: str | None,
    upsample: str | None = None,
    align_corners: bool = False,
) -> LossSpec:
    """Check the arguments that all losses share and put the spec together.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument outside its range.
    """
    check_choice("mode", mode, MODES)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("absent", absent, ("keep", "skip"))
    if upsample is not None and upsample not in UPSAMPLES:
        raise ValueError(
            f"upsample: expected None or one of {', '.join(map(repr, UPSAMPLES))}, got {upsample!r}"
        )
    check_flag("align_corners", align_corners)
    if align_corners and upsample != "bilinear":
        raise ValueError(
            f"align_corners: True is for upsample='bilinear', got it with upsample={upsample!r}"
        )
    if activation not in (None, "sigmoid"):
        raise ValueError(
            f"activation: expected None or 'sigmoid' in mode {mode!r}, got {activation!r}"
        )
    if not include_background and mode != "multiclass":
        raise ValueError(
            "include_background: False is for mode='multiclass' (no other has a background class)"
        )
    if ignore_index is not None and (
        isinstance(ignore_index, bool) or not isinstance(ignore_index, int)
    ):
        raise TypeError(f"ignore_index: expected an int or None, got {ignore_index!r}")
    check_flag("batch", batch)
    check_flag("include_background", include_background)
    if batch and reduction == "none" and points and regions:
        raise ValueError(
            "reduction: 'none' with batch=True has no common shape for pointwise and region terms; "
            "use 'mean' or 'sum', or one loss at a time"
        )
    softmax = is_softmax(mode, activation)
    # Pointwise terms are the same per sample or per batch; per sample keeps their shape under
    # 'none'.
    return LossSpec(
        mode=mode,
        points=tuple(replace(t, name="ce") if softmax and t.name == "bce" else t for t in points),
        regions=tuple(regions),
        reduction=reduction,
        ignore_index=ignore_index,
        include_background=include_background or not regions,
        batch=batch and bool(regions),
        absent=absent,
        activation=activation,
        upsample=upsample,
        align_corners=align_corners,
    )


def sums_spec(
    mode: str,
    ignore_index: int | None,
    activation: str | None = None,
    upsample: str | None = None,
    align_corners: bool = False,
) -> LossSpec:
    """The spec of `region_sums`: no terms, the sums themselves."""
    base = make_spec(
        mode=mode,
        reduction="sum",
        ignore_index=ignore_index,
        include_background=True,
        batch=False,
        absent="keep",
        activation=activation,
        upsample=upsample,
        align_corners=align_corners,
    )
    return replace(base, reduction="sums")
