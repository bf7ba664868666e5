"""Per-pixel terms: each term's value and its derivative with respect to the logit, side by side.

A term is a device function `term(pixel, params, PTX) -> (value, slope)`. The forward kernel adds up
the values of the terms it is given, the backward kernel adds `coefficient * slope`; whatever a
kernel does not use of a term, the compiler removes. So a new per-pixel term is one function here
(and its name in `spec.py`, its formula in `reference.py`).

`pixel` is what `sigmoid_pixel` returns, all from one exponential, one reciprocal and one logarithm:

    x       logit                        t      target in [0, 1]
    p       sigmoid(x)                   p_not  1 - p, accurate where p rounds to 1
    dp      p (1 - p) = dp/dx            error  p - t
    miss    1 - p_t = p + t - 2 p t      tilt   (1 - 2 t) miss
    soft    log(1 + exp(-|x|)), the softplus part of the cross-entropy

`params` holds the hyper-parameters `(alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing)`.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# ---- approximate special functions: PTX on NVIDIA, the portable twin elsewhere (AMD, interpreter)


@triton.jit
def exp2(x, PTX: tl.constexpr):
    """2**x; PTX: 2 ulp, subnormal results are 0."""
    if PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def log2(x, PTX: tl.constexpr):
    """log2(x); PTX: absolute error 2e-7 on (0.5, 2), relative 2e-7 elsewhere."""
    if PTX:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.log2(x)


@triton.jit
def reciprocal(x, PTX: tl.constexpr):
    """1 / x; PTX: 1 ulp."""
    if PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


# ---- what all terms of a pixel share


@triton.jit
def sigmoid_pixel(x, t, HARD: tl.constexpr, PTX: tl.constexpr):
    """The quantities of one pixel that the terms are written in (see the module's docstring).

    HARD: targets are exactly 0 or 1, which makes `miss` |p - t| and `tilt` p - t, for free.
    """
    e = exp2(tl.abs(x) * (-LOG2E), PTX)
    u = 1.0 + e
    r = reciprocal(u, PTX)
    s = e * r
    positive = x >= 0
    p = tl.where(positive, r, s)
    p_not = tl.where(positive, s, r)
    error = p - t
    if HARD:
        miss = tl.abs(error)
        tilt = error
    else:
        turn = 1.0 - 2.0 * t
        miss = t + p * turn
        tilt = turn * miss
    # log(u) alone loses what 1 + e rounds away: at |x| = 15 a fifth of it, beyond 17 all.
    soft = log2(u, PTX) * LN2 + (e - (u - 1.0))
    return x, t, p, p_not, s * r, error, miss, tilt, soft


# ---- region sums


@triton.jit
def overlap(pixel, params, PTX: tl.constexpr):
    """I = sum p t."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    return p * t, dp * t


@triton.jit
def mass(pixel, params, PTX: tl.constexpr):
    """P = sum p."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    return p, dp


# ---- statistics: sums without a derivative


@triton.jit
def target(pixel, params, PTX: tl.constexpr):
    """T = sum t."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    return t, 0.0


@triton.jit
def predicted(pixel, params, PTX: tl.constexpr):
    """Number of pixels with p > 0.5."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    return tl.where(x > 0, 1.0, 0.0), 0.0


@triton.jit
def actual(pixel, params, PTX: tl.constexpr):
    """Number of pixels with t > 0.5; the same as `target` where targets are hard."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    return tl.where(t > 0.5, 1.0, 0.0), 0.0


@triton.jit
def hit(pixel, params, PTX: tl.constexpr):
    """Number of pixels with p > 0.5 and t > 0.5."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    return tl.where(x > 0, 1.0, 0.0) * tl.where(t > 0.5, 1.0, 0.0), 0.0


@triton.jit
def hard_hit(pixel, params, PTX: tl.constexpr):
    """Number of pixels with p > 0.5 and t > 0.5, for hard targets: one instruction."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    return tl.where(x > 0, 1.0, 0.0) * t, 0.0


# ---- pointwise losses


@triton.jit
def bce(pixel, params, PTX: tl.constexpr):
    """Binary cross-entropy, softplus(x) - x t."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    return tl.maximum(x, 0.0) - x * t + soft, error


@triton.jit
def weighted_bce(pixel, params, PTX: tl.constexpr):
    """Cross-entropy, smoothed, with pos_weight w: (1-t) x + (1 + (w-1) t) softplus(-x)."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing = params
    t = t + label_smoothing * (0.5 - t)
    weight = 1.0 + (pos_weight - 1.0) * t
    return (1.0 - t) * x + weight * (tl.maximum(-x, 0.0) + soft), (1.0 - t) - weight * p_not


@triton.jit
def focal(pixel, params, PTX: tl.constexpr):
    """Focal loss for any gamma >= 0 (Lin et al. 2017, eq. 5): alpha_t q**gamma bce, q = 1 - p_t.

    The floor keeps q**(gamma-1) finite for gamma < 1 at saturated logits, where dp is smaller
    still; so q must not round to 0 before dp does, which |p - t| would.
    """
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing = params
    alpha_t = alpha_neg + t * (alpha_pos - alpha_neg)
    bce = tl.maximum(x, 0.0) - x * t + soft
    q = tl.maximum(t * p_not + (1.0 - t) * p, 1e-30)
    power = exp2(gamma * log2(q, PTX), PTX)
    power_slope = gamma * power * reciprocal(q, PTX)
    return alpha_t * power * bce, alpha_t * (
        power_slope * (1.0 - 2.0 * t) * dp * bce + power * error
    )


@triton.jit
def focal_squared(pixel, params, PTX: tl.constexpr):
    """Focal loss at gamma = 2, the usual value: without a power, two special functions fewer."""
    x, t, p, p_not, dp, error, miss, tilt, soft = pixel
    alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing = params
    alpha_t = alpha_neg + t * (alpha_pos - alpha_neg)
    bce = tl.maximum(x, 0.0) - x * t + soft
    square = miss * miss
    return alpha_t * (square * bce), alpha_t * (2.0 * (dp * bce) * tilt + square * error)


# Sums that every forward launch takes; the pointwise terms follow. finalize.py has their columns.
SUMS = (overlap, mass, target, predicted, actual, hit)
HARD_SUMS = (overlap, mass, target, predicted, hard_hit)
SLOPED_SUMS = (overlap, mass)
POINTWISE = {
    "bce": bce,
    "weighted_bce": weighted_bce,
    "focal": focal,
    "focal_squared": focal_squared,
}
