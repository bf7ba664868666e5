"""How the programs of a team hand each other their sums of a group, while both go on.

A posted sum is one word of 8 bytes: the sum in the lower half, in the upper half a number that
rises from group to group and from launch to launch. Who reads its own number has the sum too, so
nothing is released or acquired: a release would wait for every gradient that is on its way out
(H100, 32x1x1024x1024: 189 us with a counter of the programs that have posted, 160 us so).

A team keeps the words of its last 2 * LAG + 2 groups. A program that posts group s has read all of
group s - 1 - LAG; so the fastest posts at most s + LAG + 1, and the slowest still reads s - LAG.
Launches of one stream share the memory, however they divide it: all their numbers rise.
"""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

POSTED = tl.constexpr(3)  # sums that a team exchanges: overlap, mass, target
COUNTERS = tl.constexpr(4)  # int32 before the words: programs done, last number, unused


@triton.jit
def add_four(a0, a1, a2, a3, b0, b1, b2, b3):
    """Four sums at once: one exchange between the warps for all."""
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@gluon.jit
def words_of(counters_ptr, team, s, TEAM, LAG: gl.constexpr):
    """Where the first member's words of its team's group s are."""
    words_ptr = (counters_ptr + COUNTERS).to(gl.pointer_type(gl.int64), bitcast=True)
    DEPTH: gl.constexpr = 2 * LAG + 2
    return words_ptr + (team * DEPTH + (s + DEPTH) % DEPTH) * (POSTED * TEAM)


@gluon.jit
def post(words_ptr, overlap, mass, target, number, rank, TEAM, FLAT: gl.constexpr):
    """Give the team this program's sums of one group."""
    k = gl.arange(0, 4, layout=FLAT)
    value = gl.where(k == 0, overlap, gl.where(k == 1, mass, target))
    word = value.to(gl.int32, bitcast=True).to(gl.int64) & 0xFFFFFFFF
    word = word | (number.to(gl.int64) << 32)
    gl.atomic_xchg(words_ptr + k * TEAM + rank, word, mask=k < POSTED, sem="relaxed")


@gluon.jit
def ask(words_ptr, member, here, TEAM):
    """Every member's words of one group, as far as they have come."""
    return (
        gl.load(words_ptr + member, mask=here, other=0, volatile=True),
        gl.load(words_ptr + TEAM + member, mask=here, other=0, volatile=True),
        gl.load(words_ptr + 2 * TEAM + member, mask=here, other=0, volatile=True),
    )


@gluon.jit
def value_of(word, here, number):
    """A word's sum, and 1 where it is not there yet."""
    missing = here & ((word >> 32).to(gl.int32) != number)
    value = word.to(gl.int32).to(gl.float32, bitcast=True)
    return gl.where(here & ~missing, value, 0.0), gl.where(missing, 1.0, 0.0)


@gluon.jit
def add_up(words, here, number):
    """The team's overlap, mass and target of one group, and how many words are missing."""
    overlap, no_overlap = value_of(words[0], here, number)
    mass, no_mass = value_of(words[1], here, number)
    target, no_target = value_of(words[2], here, number)
    return gl.reduce((overlap, mass, target, no_overlap + no_mass + no_target), 0, add_four)
