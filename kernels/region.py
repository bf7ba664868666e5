"""A region term of one group: its value, and how it moves with the group's sums."""

import triton
import triton.language as tl

from fastseg_losses.kernels.special import minus_log, reciprocal

SCORE_FLOOR = tl.constexpr(1e-7)
SMALLEST = tl.constexpr(2.0**-126)  # normal float32


@triton.jit
def region_term(
    overlap,
    mass,
    target,
    term,
    LOG: tl.constexpr,
    POWER: tl.constexpr,
    FLOOR: tl.constexpr = True,
    PTX: tl.constexpr = False,
):
    """A region term of one group, and its derivatives with respect to I and P.

    (offset - score) ** gamma or (-log(score)) ** gamma, where the score is
    (I + s) / max((1 - a - b) I + a P + b T + s', floor). Every warp of the single launch does this
    once a step, so the usual form has no power and one reciprocal, and FLOOR says whether the floor
    may be above 0, which of the native losses it never is.
    """
    alpha, beta, smooth, smooth_dr, gamma, floor, offset = term
    whole = (1.0 - alpha - beta) * overlap + alpha * mass + beta * target + smooth_dr
    if FLOOR:
        floored = (floor > 0.0) & (whole <= floor)
        empty = (whole == 0.0) & (floor <= 0.0)
        inverse = reciprocal(tl.where(empty, 1.0, tl.where(floored, floor, whole)), PTX)
    else:
        empty = tl.abs(whole) < SMALLEST  # what is below is 0 for the reciprocal
        inverse = tl.where(empty, 0.0, reciprocal(whole, PTX))
    score = tl.where(empty, 1.0, (overlap + smooth) * inverse)
    through = tl.where(floored, 0.0, score) if FLOOR else score  # what moves with the denominator
    d_overlap = (1.0 - through * (1.0 - alpha - beta)) * inverse
    d_mass = -through * alpha * inverse
    if FLOOR:
        d_overlap = tl.where(empty, 0.0, d_overlap)
        d_mass = tl.where(empty, 0.0, d_mass)
    if LOG:
        least = tl.where(floor > 0.0, floor, SCORE_FLOOR) if FLOOR else SCORE_FLOOR
        logged = tl.where(score < least, least, score)  # a maximum would make the floor of NaN
        base = minus_log(logged)
        slope = tl.where(score < least, 0.0, -1.0 / logged)
    else:
        base = offset - score
        slope = -1.0
    if POWER:
        # base ** gamma, a straight line below the floor, where gamma < 1 has no finite slope.
        power = tl.exp2((gamma - 1.0) * tl.log2(tl.maximum(base, SCORE_FLOOR)))
        slope *= power * tl.where(base >= SCORE_FLOOR, gamma, 1.0)
        base *= power
    return base, slope * d_overlap, slope * d_mass
