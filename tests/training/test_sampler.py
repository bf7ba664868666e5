from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from training.index_files import SIZE, write_simple

from fastseg_losses.training import sampler as sampler_module
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.sampler import EpochSampler, foreground_draws
from fastseg_losses.training.samples import Draw, ParquetSegmentation


def rows_of(path: Path, rows: int = 8) -> ParquetSegmentation:
    return ParquetSegmentation(IndexTable(write_simple(path, rows)), range(rows), SIZE)


def test_sampler_goes_to_an_epoch(tmp_path: Path) -> None:
    data = rows_of(tmp_path / "s.parquet")
    sampler = EpochSampler(data, shuffle=True, seed=0)
    passes = [list(sampler) for _ in range(3)]
    assert [{draw.epoch for draw in order} for order in passes] == [{0}, {1}, {2}]
    fresh = EpochSampler(data, shuffle=True, seed=0)
    fresh.start(2)
    assert list(fresh) == passes[2]
    assert list(EpochSampler(data, shuffle=True, seed=1)) != passes[0]
    assert list(EpochSampler(data, shuffle=False, seed=0)) == [Draw(0, i) for i in range(8)]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_pass_can_start_after_some_batches(
    tmp_path: Path, world_size: int, drop_last: bool
) -> None:
    data = rows_of(tmp_path / "s.parquet", 14)
    for rank in range(world_size):
        sampler = EpochSampler(
            data,
            shuffle=True,
            seed=0,
            batch_size=2,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
        first, second = list(sampler), list(sampler)
        batches = -(-len(first) // 2)
        for skip in range(batches + 1):
            sampler.start(1, skip)
            assert list(sampler) == second[2 * skip :]
            assert {draw.epoch for draw in sampler} == {2}  # and the next pass is complete
            assert len(sampler) == len(first)
        with pytest.raises(ValueError, match=f"skip: expected at most the epoch's {batches} batch"):
            sampler.start(0, batches + 1)
        with pytest.raises(ValueError, match="epoch: expected at least 0, got -1"):
            sampler.start(-1)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_divide_the_same_order(
    tmp_path: Path, world_size: int, batch_size: int, shuffle: bool
) -> None:
    for count in (1, 2, 7, 12, 13):
        data = rows_of(tmp_path / f"{count}.parquet", count)
        options = {"shuffle": shuffle, "seed": 3}
        everything = list(EpochSampler(data, **options))  # type: ignore[arg-type]
        ranks = [
            EpochSampler(data, **options, batch_size=batch_size, rank=r, world_size=world_size)  # type: ignore[arg-type]
            for r in range(world_size)
        ]
        lists = [list(sampler) for sampler in ranks]
        assert [len(draws) for draws in lists] == [len(sampler) for sampler in ranks]
        batches = {-(-len(draws) // batch_size) for draws in lists}
        assert batches == {-(-count // (world_size * batch_size))}
        whole = world_size * batch_size
        for batch in range(batches.pop()):
            mine = slice(batch * batch_size, (batch + 1) * batch_size)
            parts = [[draw for draw in draws[mine] if draw.counts] for draws in lists]
            assert sum(parts, []) == everything[batch * whole : (batch + 1) * whole]
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            # What only fills up comes where nothing else does, and once.
            fillers = [[draw for draw in draws[mine] if not draw.counts] for draws in lists]
            assert [len(part) for part in fillers] == [int(not part) for part in parts]


def test_an_incomplete_last_batch_is_dropped_by_all_processes(tmp_path: Path) -> None:
    data = rows_of(tmp_path / "s.parquet", 11)
    for rank in range(2):
        sampler = EpochSampler(
            data, shuffle=True, seed=0, batch_size=2, drop_last=True, rank=rank, world_size=2
        )
        draws = list(sampler)
        assert len(draws) == len(sampler) == 4
        assert all(draw.counts for draw in draws)


def test_no_rows_are_no_batches(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "s.parquet"))
    sampler = EpochSampler(
        ParquetSegmentation(index, [], SIZE), shuffle=False, seed=0, world_size=2
    )
    assert len(sampler) == 0
    assert list(sampler) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank: expected at most 1, got 2"),
        ({"rank": -1}, "rank: expected at least 0, got -1"),
        ({"world_size": 0}, "world_size: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochSampler(rows_of(tmp_path / "s.parquet"), shuffle=True, seed=0, **options)  # type: ignore[arg-type]


def test_large_set_is_shuffled_within_windows_of_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = IndexTable(write_simple(tmp_path / "s.parquet", 12, row_group_size=2))
    window = max(index.group_image_bytes) * 2 + 10
    monkeypatch.setattr(sampler_module, "GROUP_CACHE_BYTES", 2 * window)
    data = ParquetSegmentation(index, range(1, 12), SIZE)
    sampler = EpochSampler(data, shuffle=True, seed=0)
    orders = [[draw.position for draw in sampler] for _ in range(3)]
    for order in orders:
        assert sorted(order) == list(range(11))
        groups = [index.group_of(int(data.rows[position])) for position in order]
        last = {group: i for i, group in enumerate(groups)}
        for start, group in enumerate(groups):
            alive = {g for i, g in enumerate(groups) if i <= start <= last[g]}
            assert len(alive) <= 2  # never more row groups in use than the window holds
            assert group in alive
    assert orders[0] != orders[1]
    assert np.any(np.diff(orders[0]) != 1)


def drawn(sampler: EpochSampler, epoch: int) -> Counter[int]:
    sampler.start(epoch)
    return Counter(draw.position for draw in sampler)


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize(("share", "wanted"), [(0.1, 3), (0.33, 5), (0.5, 7), (0.9, 12)])
def test_foreground_is_drawn_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, wanted: int, window: bool
) -> None:
    index = IndexTable(write_simple(tmp_path / "s.parquet", 15, row_group_size=2))
    if window:
        monkeypatch.setattr(
            sampler_module, "GROUP_CACHE_BYTES", 4 * max(index.group_image_bytes) + 20
        )
    rows = [row for row in range(15) if row not in (4, 9)]
    data = ParquetSegmentation(index, rows, SIZE)
    foreground = {rows.index(row) for row in (0, 8, 13)}
    # Row 4 has foreground too, but is not of the set.
    options = {"foreground_rows": [0, 4, 8, 13], "foreground_share": share}
    sampler = EpochSampler(data, shuffle=True, seed=0, **options)  # type: ignore[arg-type]
    seen: Counter[int] = Counter()
    for epoch in range(100):
        counts = drawn(sampler, epoch)
        assert sum(counts.values()) == len(sampler) == 13
        assert sum(counts[position] for position in foreground) == wanted
        times = [counts[position] for position in foreground]
        assert max(times) - min(times) <= 1
        assert all(counts[position] == 1 for position in set(counts) - foreground)
        seen += counts
        sampler.start(epoch)
        draws = list(sampler)
        repeats = sorted((draw.position, draw.repeat) for draw in draws)
        assert repeats == [(p, k) for p in sorted(counts) for k in range(counts[p])]
        sampler.start(epoch)
        assert list(sampler) == draws
    assert set(seen) == set(range(13))  # the others take turns
    if share == 0.1:  # there is enough as it is: nothing changes
        plain = EpochSampler(data, shuffle=True, seed=0)
        plain.start(99)
        assert list(plain) == draws


def test_processes_divide_an_oversampled_order(tmp_path: Path) -> None:
    data = rows_of(tmp_path / "s.parquet", 9)
    options = {"shuffle": True, "seed": 1, "foreground_rows": [2], "foreground_share": 0.5}
    whole = list(EpochSampler(data, **options))  # type: ignore[arg-type]
    assert sum(draw.position == 2 for draw in whole) == 5
    parts = [
        list(EpochSampler(data, **options, rank=rank, world_size=3))  # type: ignore[arg-type]
        for rank in range(3)
    ]
    assert [draw for batch in zip(*parts, strict=True) for draw in batch] == whole


def test_oversampling_needs_foreground_and_a_random_order(tmp_path: Path) -> None:
    data = rows_of(tmp_path / "s.parquet")
    for options, message in (
        ({"foreground_rows": [99]}, "foreground_rows: expected at least one row"),
        ({"foreground_rows": [1], "shuffle": False}, "foreground_share: expected 0 without"),
        ({"foreground_rows": [1], "foreground_share": 1.0}, "foreground_share: expected a number"),
    ):
        arguments = {"shuffle": True, "seed": 0, "foreground_share": 0.5} | options
        with pytest.raises(ValueError, match=message):
            EpochSampler(data, **arguments)  # type: ignore[arg-type]


def test_a_share_is_not_pushed_over_by_rounding() -> None:
    assert [foreground_draws(n, 1, 0.33) for n in (3, 100, 101)] == [1, 33, 34]
    assert foreground_draws(100, 40, 0.33) == 40
