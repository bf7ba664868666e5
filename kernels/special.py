"""Exponentials, logarithms and comparisons as the kernels need them.

PTX on NVIDIA, the portable twin elsewhere (AMD, the interpreter).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


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


@triton.jit
def where_equal(a, b, x, y, PTX: tl.constexpr):
    """x where a == b, else y; PTX: the two instructions together."""
    if PTX:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.eq.f32 p, $1, $2; selp.f32 $0, $3, $4, p; }",
            "=f,f,f,f,f", [a, b, x, y], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return tl.where(a == b, x, y)


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
def minus_log(x):
    """-log(x), relative error 4e-7: log2's is 2e-7 whatever x is, near 1 much of what is left."""
    near = (x >= 0.5) & (x <= 1.0)
    over = tl.where(near, (1.0 - x) / x, 0.0)
    return tl.where(near, log1p_unit(over), -tl.log2(x) * LN2)


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
