"""Per-pixel terms: each term's value and its derivative, side by side.

A term is a device function `term(pixel, params, PTX) -> (total, slope)`: the value summed over the
neighbours that a thread holds, and the derivative at every pixel. The forward kernel adds up the
totals of the terms it is given, the backward kernel the slopes; what a kernel does not use of a
term, the compiler removes. So a new per-pixel term is one function here (and its name in `spec.py`,
its formula in `reference.py`). Region sums give their slope with respect to the probability,
pointwise losses with respect to the logit.

A pixel that does not count is read as NEUTRAL background, for which every total is 0.

`pixel` is what `sigmoid_pixel` returns, all from one exponential and one reciprocal:

    x       logit                        t      target in [0, 1]
    e       exp(-|x|)                    step   1 where x > 0, else 0
    p       sigmoid(x)                   p_not  1 - p, accurate where p rounds to 1
    dp      p (1 - p) = dp/dx            error  p - t
    miss    1 - p_t = p + t - 2 p t; its derivative is turn * dp, turn = 1 - 2 t. Where targets are
            hard both signs are left away: miss = error = turn * (1 - p_t), turn = 1

`params` holds the hyper-parameters `(alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing)`.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels.special import (
    LOG2E,
    exp2,
    greater,
    log1p_rough,
    log1p_total,
    log1p_unit,
    log2,
    reciprocal,
)

# The logit of a pixel that does not count: p, loss and slope of background are exactly 0 there.
NEUTRAL = tl.constexpr(-1.2345679e30)


# ---- what all terms of a pixel share


@triton.jit
def sigmoid_pixel(x, t, HARD: tl.constexpr, PTX: tl.constexpr):
    """The quantities of one pixel that the terms are written in (see the module's docstring)."""
    e = exp2(tl.abs(x) * (-LOG2E), PTX)
    r = reciprocal(1.0 + e, PTX)
    s = e * r
    step = greater(x, 0.0, PTX)
    p = tl.abs(step - s)  # without a select: r is 1 - s
    p_not = tl.where(x > 0, s, r)
    error = p - t
    if HARD:
        turn = 1.0
        miss = error
    else:
        turn = 1.0 - 2.0 * t
        miss = t + p * turn
    return x, t, e, step, p, p_not, s * r, error, miss, turn


@triton.jit
def identity_pixel(x, t, PTX: tl.constexpr):
    """The same for logits that are probabilities: what region sums are made of, nothing else."""
    p = tl.where(x == NEUTRAL, 0.0, x)
    one = tl.zeros_like(p) + 1.0
    return x, t, p, greater(p, 0.5, PTX), p, 1.0 - p, one, p - t, p, one


@triton.jit
def pixel_of(x, t, HARD: tl.constexpr, IDENTITY: tl.constexpr, PTX: tl.constexpr):
    """A pixel's quantities under the activation that the loss has."""
    if IDENTITY:
        return identity_pixel(x, t, PTX)
    else:
        return sigmoid_pixel(x, t, HARD, PTX)


# ---- region sums: slopes with respect to p


@triton.jit
def overlap(pixel, params, PTX: tl.constexpr):
    """I = sum p t."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(p * t, 1), t


@triton.jit
def mass(pixel, params, PTX: tl.constexpr):
    """P = sum p."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(p, 1), 1.0


@triton.jit
def least(pixel, params, PTX: tl.constexpr):
    """I = sum min(p, t); where they are equal, half of the slope."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    slope = tl.where(error < 0.0, 1.0, tl.where(error == 0.0, 0.5, 0.0))
    return tl.sum(tl.minimum(p, t), 1), slope


@triton.jit
def squared_mass(pixel, params, PTX: tl.constexpr):
    """P = sum p**2."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(p * p, 1), 2.0 * p


# ---- statistics: sums without a slope


@triton.jit
def target(pixel, params, PTX: tl.constexpr):
    """T = sum t."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(t, 1), 0.0


@triton.jit
def squared_target(pixel, params, PTX: tl.constexpr):
    """T = sum t**2."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(t * t, 1), 0.0


@triton.jit
def predicted(pixel, params, PTX: tl.constexpr):
    """Number of pixels with p > 0.5."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(step, 1), 0.0


@triton.jit
def actual(pixel, params, PTX: tl.constexpr):
    """Number of pixels with t > 0.5; the same as `target` where targets are hard."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(tl.where(t > 0.5, 1.0, 0.0), 1), 0.0


@triton.jit
def hit(pixel, params, PTX: tl.constexpr):
    """Number of pixels with p > 0.5 and t > 0.5."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(step * tl.where(t > 0.5, 1.0, 0.0), 1), 0.0


@triton.jit
def hard_hit(pixel, params, PTX: tl.constexpr):
    """Number of pixels with p > 0.5 and t > 0.5, for hard targets: one instruction."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(step * t, 1), 0.0


# ---- pointwise losses: slopes with respect to x


@triton.jit
def bce(pixel, params, PTX: tl.constexpr):
    """Binary cross-entropy, softplus(x) - x t = max(x, 0) - x t + log(1 + e)."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(tl.maximum(x, 0.0) - x * t, 1) + log1p_total(e, PTX), error


@triton.jit
def weighted_bce(pixel, params, PTX: tl.constexpr):
    """Cross-entropy, smoothed, with pos_weight w: w t softplus(-x) + (1 - t) softplus(x)."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing = params
    t = t + label_smoothing * (0.5 - t)
    weight = pos_weight * t
    value = weight * tl.maximum(-x, 0.0) + (1.0 - t) * tl.maximum(x, 0.0)
    value += (weight + 1.0 - t) * log1p_unit(e)
    value = tl.where(x == NEUTRAL, 0.0, value)  # its target is smoothed too
    return tl.sum(value, 1), (1.0 - t) * p - weight * p_not


@triton.jit
def focal_of_miss(pixel, params, q, dq, SQUARED: tl.constexpr, PTX: tl.constexpr):
    """Focal loss of any 1 - p_t = q and its derivative; SQUARED: gamma is 2, the usual value."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing = params
    alpha_t = alpha_neg + t * (alpha_pos - alpha_neg)
    bce = tl.maximum(x, 0.0) - x * t + log1p_unit(e)
    if SQUARED:
        value = q * q * bce
        slope = q * (2.0 * dq * bce + q * error)
    else:
        q = tl.maximum(q, 1e-30)
        power = exp2(gamma * log2(q, PTX), PTX)
        value = power * bce
        slope = gamma * power * reciprocal(q, PTX) * dq * bce + power * error
    return tl.sum(alpha_t * value, 1), alpha_t * slope


@triton.jit
def focal(pixel, params, PTX: tl.constexpr):
    """Focal loss for any gamma >= 0 (Lin et al. 2017, eq. 5): alpha_t q**gamma bce, q = 1 - p_t.

    The floor keeps q**(gamma-1) finite for gamma < 1 at saturated logits, where dp is smaller
    still; so q must not round to 0 before dp does, which |p - t| would.
    """
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    q = t * p_not + (1.0 - t) * p
    return focal_of_miss(pixel, params, q, (1.0 - 2.0 * t) * dp, False, PTX)


@triton.jit
def focal_squared(pixel, params, PTX: tl.constexpr):
    """Focal loss at gamma = 2, the usual value: without a power, two special functions fewer."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing = params
    alpha_t = alpha_neg + t * (alpha_pos - alpha_neg)
    bce = tl.maximum(x, 0.0) - x * t + log1p_rough(e, PTX)
    slope = alpha_t * miss * (2.0 * (dp * bce) * turn + miss * error)
    return tl.sum(alpha_t * (miss * miss * bce), 1), slope


@triton.jit
def likelihood_miss(pixel, PTX: tl.constexpr):
    """1 - exp(-bce) and its derivative; below 0.01 a series: the difference keeps no digit."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    bce = tl.maximum(x, 0.0) - x * t + log1p_unit(e)
    p_t = exp2(-bce * LOG2E, PTX)
    series = bce * (1.0 - bce * (0.5 - bce * (1.0 / 6.0 - bce * (1.0 / 24.0))))
    return tl.where(bce < 0.01, series, 1.0 - p_t), p_t * error


@triton.jit
def margin_miss(pixel, PTX: tl.constexpr):
    """Sigmoid(x (1 - 2 t)) and its derivative."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    sign = 1.0 - 2.0 * t
    z = x * sign
    small = exp2(tl.abs(z) * (-LOG2E), PTX)
    r = reciprocal(1.0 + small, PTX)
    return tl.where(z > 0.0, r, small * r), sign * (small * r * r)


@triton.jit
def focal_likelihood(pixel, params, PTX: tl.constexpr):
    """Focal loss whose p_t is exp(-bce), another than in `focal` where targets are soft."""
    q, dq = likelihood_miss(pixel, PTX)
    return focal_of_miss(pixel, params, q, dq, False, PTX)


@triton.jit
def focal_likelihood_squared(pixel, params, PTX: tl.constexpr):
    """The same at gamma = 2."""
    q, dq = likelihood_miss(pixel, PTX)
    return focal_of_miss(pixel, params, q, dq, True, PTX)


@triton.jit
def focal_margin(pixel, params, PTX: tl.constexpr):
    """Focal loss whose p_t is sigmoid(x (2 t - 1)), another than in `focal` if targets are soft."""
    q, dq = margin_miss(pixel, PTX)
    return focal_of_miss(pixel, params, q, dq, False, PTX)


@triton.jit
def focal_margin_squared(pixel, params, PTX: tl.constexpr):
    """The same at gamma = 2."""
    q, dq = margin_miss(pixel, PTX)
    return focal_of_miss(pixel, params, q, dq, True, PTX)


# ---- softmax losses: value and pull of one class, both to be multiplied by its target and weight
#
# p: the class's probability, q: 1 - p, accurate where p rounds to 1, nll: -log p. With u_k the pull
# of class k times its target and weight, the slope with respect to x_k is p_k * (sum of u) - u_k.


@triton.jit
def cross_entropy(p, q, nll, gamma, PTX: tl.constexpr):
    """Cross-entropy, -log p."""
    return nll, 1.0


@triton.jit
def softmax_focal(p, q, nll, gamma, PTX: tl.constexpr):
    """Focal loss for any gamma >= 0, q**gamma (-log p).

    Where p rounds to 1, nll / q is 1: what rounding leaves of nll is no multiple of q, and
    q**(gamma - 1) would make 1e7 of it.
    """
    q = tl.maximum(q, 1e-30)
    power = exp2(gamma * log2(q, PTX), PTX)
    ratio = tl.where(q > 1e-6, nll * reciprocal(q, PTX), 1.0)
    return power * nll, power * (1.0 + gamma * p * ratio)


@triton.jit
def softmax_focal_squared(p, q, nll, gamma, PTX: tl.constexpr):
    """Focal loss at gamma = 2, the usual value, without a power."""
    return q * q * nll, q * (q + 2.0 * p * nll)


# Sums that every forward launch takes; the pointwise terms follow. finalize.py has their columns.
SUMS = (overlap, mass, target, predicted, actual, hit)
HARD_SUMS = (overlap, mass, target, predicted, hard_hit)
POINTWISE = {
    "bce": bce,
    "weighted_bce": weighted_bce,
    "focal": focal,
    "focal_squared": focal_squared,
    "focal_likelihood": focal_likelihood,
    "focal_likelihood_squared": focal_likelihood_squared,
    "focal_margin": focal_margin,
    "focal_margin_squared": focal_margin_squared,
}
SOFTMAX = {
    "ce": cross_entropy,
    "focal": softmax_focal,
    "focal_squared": softmax_focal_squared,
}
