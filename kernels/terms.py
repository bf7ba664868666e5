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

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# The logit of a pixel that does not count: p, loss and slope of background are exactly 0 there.
NEUTRAL = tl.constexpr(-1.2345679e30)


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


@triton.jit
def equal(a, b, PTX: tl.constexpr):
    """1.0 where a and b are equal, else 0.0; PTX: one instruction, where a select takes two."""
    if PTX:
        return tl.inline_asm_elementwise(
            "set.eq.f32.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.where(a == b, 1.0, 0.0)


@triton.jit
def greater(a, b, PTX: tl.constexpr):
    """1.0 where a > b, else 0.0; PTX: one instruction, also for what was bfloat16."""
    if PTX:
        return tl.inline_asm_elementwise(
            "set.gt.f32.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.where(a > b, 1.0, 0.0)


# ---- logarithms of 1 + e


@triton.jit
def log1p_unit(e):
    """log(1 + e) for e in [0, 1], relative error 4e-7: a minimax polynomial for log(1 + e) / e.

    log2.approx(1 + e) is off by 2e-7 whatever e is: by a hundredth of the loss of a pixel that is
    right with p = 0.99998.
    """
    s = -0.008778958581387997
    s = s * e + 0.044986650347709656
    s = s * e - 0.10902292281389236
    s = s * e + 0.17847208678722382
    s = s * e - 0.24536865949630737
    s = s * e + 0.3328406512737274
    s = s * e - 0.4999817907810211
    s = s * e + 1.0
    return s * e


@triton.jit
def excess(a, b):
    """What (1 + a)(1 + b) exceeds 1 by."""
    return a * (1.0 + b) + b


@triton.jit
def log1p_total(e, PTX: tl.constexpr):
    """Sum of log(1 + e) over the neighbours, relative error 4e-7, with one logarithm for all.

    It is the logarithm of the product of 1 + e, of which we carry the excess over 1.
    """
    if PTX:
        e = tl.reduce(e, 1, excess)
    else:
        # the interpreter would run a reduction with a function of ours element by element
        for _ in tl.static_range(4):  # up to 16 neighbours
            if e.shape[1] > 1:
                a, b = tl.split(tl.reshape(e, [e.shape[0], e.shape[1] // 2, 2]))
                e = excess(a, b)
        e = tl.reshape(e, [e.shape[0]])
    return tl.where(e < 1.0, log1p_unit(tl.minimum(e, 1.0)), log2(1.0 + e, PTX) * LN2)


@triton.jit
def log1p_rough(e, PTX: tl.constexpr):
    """log(1 + e) to 2e-7: for a factor that vanishes with e, as p (1 - p) or (1 - p_t)**2 do."""
    return log2(1.0 + e, PTX) * LN2


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


# ---- statistics: sums without a slope


@triton.jit
def target(pixel, params, PTX: tl.constexpr):
    """T = sum t."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    return tl.sum(t, 1), 0.0


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
def focal(pixel, params, PTX: tl.constexpr):
    """Focal loss for any gamma >= 0 (Lin et al. 2017, eq. 5): alpha_t q**gamma bce, q = 1 - p_t.

    The floor keeps q**(gamma-1) finite for gamma < 1 at saturated logits, where dp is smaller
    still; so q must not round to 0 before dp does, which |p - t| would.
    """
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing = params
    alpha_t = alpha_neg + t * (alpha_pos - alpha_neg)
    bce = tl.maximum(x, 0.0) - x * t + log1p_unit(e)
    q = tl.maximum(t * p_not + (1.0 - t) * p, 1e-30)
    power = exp2(gamma * log2(q, PTX), PTX)
    power_slope = gamma * power * reciprocal(q, PTX)
    slope = alpha_t * (power_slope * (1.0 - 2.0 * t) * dp * bce + power * error)
    return tl.sum(alpha_t * power * bce, 1), slope


@triton.jit
def focal_squared(pixel, params, PTX: tl.constexpr):
    """Focal loss at gamma = 2, the usual value: without a power, two special functions fewer."""
    x, t, e, step, p, p_not, dp, error, miss, turn = pixel
    alpha_neg, alpha_pos, gamma, pos_weight, label_smoothing = params
    alpha_t = alpha_neg + t * (alpha_pos - alpha_neg)
    bce = tl.maximum(x, 0.0) - x * t + log1p_rough(e, PTX)
    slope = alpha_t * miss * (2.0 * (dp * bce) * turn + miss * error)
    return tl.sum(alpha_t * (miss * miss * bce), 1), slope


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
SLOPED_SUMS = (overlap, mass)
POINTWISE = {
    "bce": bce,
    "weighted_bce": weighted_bce,
    "focal": focal,
    "focal_squared": focal_squared,
}
SOFTMAX = {
    "ce": cross_entropy,
    "focal": softmax_focal,
    "focal_squared": softmax_focal_squared,
}
