"""Drawn calls of every loss: the error is no worse than that of the same expression in PyTorch.

For every loss, mode, reduction and dtype; what is drawn is in drawn_cases.py, how it is judged in
drawn_check.py. `EXAMPLES=2500 pytest tests/test_numbers.py` draws as many as the GPU tests do.
"""

import os

import pytest
import torch
from drawn_cases import (
    DEVICE,
    INTERPRETED,
    KERNEL_DTYPES,
    MODES,
    TORCH,
    Case,
    Limits,
    Way,
    cases,
    ways,
)
from drawn_check import TOLERANCE, Record, errors_of, judge
from hypothesis import HealthCheck, Phase, given, seed, settings

SHARDS = 30  # that processes share; each has ways, and so kernels, of its own
DTYPES = (*KERNEL_DTYPES, torch.float64)


def shard_of(of: list[Way], shard: int, examples: int) -> tuple[list[Way], int]:
    """The shard's ways, and how many examples each of them gets."""
    return of[shard::SHARDS], -(-examples // len(of))


def judge_drawn(
    of: list[Way], examples: int, start: int, limits: Limits, device, backend
) -> Record:
    """The worst of so many cases of these ways, and all that failed; from a start the same ones."""
    record = Record()

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a case says all about itself; to shrink it takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(of, limits))
    def check(case: Case) -> None:
        try:
            record.add(case, judge(case, device, backend))
        except AssertionError as error:
            record.failures.append(str(error))

    check()
    return record


def finish(record: Record, where: str, expected: int) -> None:
    record.write(where)
    failures = record.failures
    assert not failures, f"{len(failures)} of them:\n" + "\n".join(failures[:10])
    assert record.cases >= expected  # each way has had its share


def judge_shard(of, shard, examples, limits, device, backend, where) -> float:
    mine, each = shard_of(of, shard, examples)
    record = Record()
    for k, way in enumerate(mine):
        record.join(judge_drawn([way], each, SHARDS * k + shard, limits, device, backend))
    finish(record, where, len(mine) * each)
    return record.worst


@pytest.mark.hypothesis
@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_torch_backend(shard, record_property):
    examples = int(os.environ.get("EXAMPLES", "432"))
    cpu = torch.device("cpu")
    worst = judge_shard(ways(DTYPES), shard, examples, TORCH, cpu, "torch", "torch backend, CPU")
    record_property("worst", worst)


@pytest.mark.hypothesis
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs test_the_kernels")
@pytest.mark.parametrize("part", range(3))
def test_the_interpreted_kernels(part, device, record_property):
    # not bfloat16: the interpreter cuts off what a GPU rounds, which is twice the error
    of = [way for way in ways((torch.float32, torch.float16)) if way.mode == MODES[part]]
    examples = int(os.environ.get("INTERPRETED_EXAMPLES", "7"))
    record = judge_drawn(of, examples, part, INTERPRETED, device, "triton")
    finish(record, "kernels, interpreted", examples)
    record_property("worst", record.worst)


@pytest.mark.hypothesis
@pytest.mark.gpu
@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_kernels(shard, cuda, poisoned, record_property):
    examples = int(os.environ.get("EXAMPLES", "2500"))
    worst = judge_shard(ways(KERNEL_DTYPES), shard, examples, DEVICE, cuda, "triton", "kernels")
    record_property("worst", worst)


# ---- the comparison itself


def test_failures_are_collected_and_reported(monkeypatch):
    monkeypatch.setitem(TOLERANCE, torch.float64, 1e-18)  # less than a rounding
    way = [Way("combined", "multilabel", torch.float64, "mean")]
    record = judge_drawn(way, 20, 0, TORCH, torch.device("cpu"), "torch")
    assert len(record.failures) > 1 and record.cases < 20
    with pytest.raises(AssertionError, match=r"(?s)of them:.*(loss|gradient): error .*'combined'"):
        finish(record, "nowhere", 20)


def test_shards_leave_nothing_out():
    everything = ways(DTYPES)
    shards = [shard_of(everything, shard, 2500) for shard in range(SHARDS)]
    assert sorted(map(str, everything)) == sorted(str(way) for mine, _ in shards for way in mine)
    assert sum(len(mine) * each for mine, each in shards) >= 2500


class Spoilt(torch.autograd.Function):
    """The same logits, another gradient."""

    @staticmethod
    def forward(ctx, x, spoil):
        ctx.spoil = spoil
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return ctx.spoil(slope.clone()), None


def one_off(slope):
    slope.view(-1)[3] += 1e-3 * slope.abs().max()
    return slope


SPOILT = {
    "value": lambda loss, spoilt: loss(spoilt(lambda slope: slope)) * (1 + 1e-5),
    "slope": lambda loss, spoilt: loss(spoilt(lambda slope: slope * (1 + 1e-5))),
    "one slope": lambda loss, spoilt: loss(spoilt(one_off)),
    "nan": lambda loss, spoilt: loss(spoilt(lambda slope: slope * float("nan"))),
    "a class of two": lambda loss, spoilt: loss(spoilt(lambda slope: slope).flip(1)),
    "a half-precision sum": lambda loss, spoilt: loss(spoilt(lambda slope: slope)).half().float(),
}


def usual_case(dtype: torch.dtype) -> Case:
    return Case(
        name="combined",
        arguments={},
        shared={"mode": "multilabel"},
        dtype=dtype,
        shape=(2, 2, 40, 40),
        size=(40, 40),
        values="usual",
        soft=False,
        targets=torch.uint8,
        valid="none",
        layouts=("contiguous", "contiguous"),
        batches=1,
        seed=1,
    )


@pytest.mark.parametrize("how", SPOILT)
def test_an_injected_error_is_found(how):
    case = usual_case(torch.float32)
    criterion = case.criterion("torch")
    judge(case, torch.device("cpu"), "torch", criterion)

    def spoilt(x, targets, valid):
        return SPOILT[how](
            lambda y: criterion(y, targets, valid), lambda spoil: Spoilt.apply(x, spoil)
        )

    with pytest.raises(AssertionError, match="error|gradient"):
        judge(case, torch.device("cpu"), "torch", spoilt)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_second_rounding_is_found(dtype):
    """A gradient that is rounded before it is multiplied by the upstream gradient."""
    case = usual_case(dtype)
    criterion = case.criterion("torch")
    judge(case, torch.device("cpu"), "torch", criterion)

    def spoilt(x, targets, valid):
        return criterion(
            Spoilt.apply(x.float(), lambda slope: (slope / 3).to(dtype).float() * 3), targets, valid
        )

    with pytest.raises(AssertionError, match="gradient: error"):
        judge(case, torch.device("cpu"), "torch", spoilt)


def test_an_error_where_there_is_nothing_is_infinite():
    nothing = torch.zeros(3, dtype=torch.float64)
    assert errors_of([[nothing, nothing, nothing]], 1e-6).ratio == 0
    assert errors_of([[nothing + 1e-30, nothing, nothing]], 1e-6).ratio == float("inf")
    assert not errors_of([[nothing * float("nan"), nothing, nothing]], 1e-6).ratio <= 1


def test_a_peer_that_is_not_finite_excuses_nothing():
    exact = torch.ones(4, dtype=torch.float64)
    for broken in (float("nan"), float("inf")):
        seen = [[exact * (1 + 1e-5), exact * broken, exact]]
        assert errors_of(seen, TOLERANCE[torch.float32]).ratio == pytest.approx(5, rel=1e-3)
