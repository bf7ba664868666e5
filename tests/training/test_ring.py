import pytest
import torch

from fastseg_losses.training.ring import StatsRing

CPU = torch.device("cpu")


def write(ring: StatsRing, value: float) -> None:
    ring.next_row().fill_(value)
    ring.commit()


def test_rows_come_back_in_order_across_the_wrap() -> None:
    ring = StatsRing(3, 2, CPU)
    seen = []
    for step in range(11):
        write(ring, float(step))
        seen += ring.ready()
    assert seen == [[float(step)] * 2 for step in range(11)]
    assert ring.flush() == []


def test_flush_hands_out_what_was_not_taken() -> None:
    ring = StatsRing(4, 1, CPU)
    for step in range(6):
        write(ring, float(step))
    assert ring.flush() == [[float(step)] for step in range(6)]
    assert ring.flush() == []


def test_a_row_is_what_the_loss_may_write_to() -> None:
    row = StatsRing(4, 15, CPU).next_row()
    assert row.shape == (15,)
    assert row.dtype == torch.float32
    assert row.is_contiguous()


def test_next_row_stays_until_committed() -> None:
    ring = StatsRing(4, 1, CPU)
    assert ring.next_row().data_ptr() == ring.next_row().data_ptr()
    first = ring.next_row().data_ptr()
    ring.commit()
    assert ring.next_row().data_ptr() != first


@pytest.mark.parametrize("size", [(0, 1), (1, 0)])
def test_empty_rings_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="interval and width"):
        StatsRing(*size, CPU)


@pytest.mark.gpu
def test_on_cuda_rows_arrive_an_interval_later_without_a_sync() -> None:
    ring = StatsRing(4, 3, torch.device("cuda", 0))
    seen = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(10):
            write(ring, float(step))
            seen += ring.ready()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen) % 4 == 0
    seen += ring.flush()
    assert seen == [[float(step)] * 3 for step in range(10)]


@pytest.mark.gpu
def test_on_cuda_a_slow_device_loses_no_row() -> None:
    ring = StatsRing(2, 1, torch.device("cuda", 0))
    seen = []
    for step in range(40):
        torch.cuda._sleep(2_000_000)  # about a millisecond: the host runs ahead of the device
        write(ring, float(step))
        seen += ring.ready()
    assert seen + ring.flush() == [[float(step)] for step in range(40)]
