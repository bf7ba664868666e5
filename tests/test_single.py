"""The launch that reads each input once (Hopper), forced on small inputs, chosen for large."""

import itertools
from dataclasses import replace

import pytest
import torch
from early_checks import (
    check_a_capture_takes_two_launches,
    check_any_upstream_gradient,
    check_backward_twice,
    check_one_launch_each_way,
    check_two_launches_agree,
)
from losses_table import ALL, ids
from oracle import check_against_float64, run

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, plans
from fastseg_losses.kernels.tiles import SingleTile, single_tile

# the others' slopes wait for no sum: test_ops_early.py
REGIONAL = [row for row in ALL if row.name not in ("bce", "focal")]
# team, teams, tiles of a slice at least, warps, slots, lag, programs a multiprocessor: one program
# alone, tails, more teams than groups, more members than threads
TILES = {
    "alone": SingleTile(1, 3, 1, 8, 3, 1, 2),
    "team": SingleTile(5, 2, 1, 8, 3, 1, 2),
    "idle-members": SingleTile(9, 1, 2, 4, 3, 1, 4),
    "long-lag": SingleTile(4, 2, 1, 8, 5, 2, 1),
    "crowded": SingleTile(150, 1, 1, 2, 3, 1, 8),
}


@pytest.mark.parametrize("targets_bytes", [1, 4])
def test_tiles_fill_the_device_and_the_shared_memory(targets_bytes):
    tile = single_tile(32, 1 << 20, targets_bytes, multiprocessors=132)
    assert tile == SingleTile(256, 1, 4, 8, 3, 1, 2)
    for groups, pixels in [(128, 1 << 18), (64, 409600), (512, 1 << 16), (40, 10**6)]:
        tile = single_tile(groups, pixels, targets_bytes, 132)
        slice_pixels = tile.tiles * 128 * tile.num_warps
        assert tile.team * tile.teams <= 132 * tile.programs and tile.teams <= groups
        assert (tile.team - 1) * slice_pixels < pixels <= tile.team * slice_pixels
        taken = tile.slots * slice_pixels * (4 + targets_bytes) + 1024
        assert tile.programs * taken <= 227 << 10
        assert tile.programs * tile.num_warps <= 16  # of 128 registers a thread
    # too little, slices that do not fit, slices too small
    for groups, pixels in [(1, 1 << 20), (32, 1 << 23), (1 << 21, 16)]:
        assert single_tile(groups, pixels, targets_bytes, 132) is None


def test_what_it_cannot_know_takes_two_launches():
    from fastseg_losses.kernels import launch, single_plan

    P = 1 << 20
    layout = launch.Layout(
        *(32, 1, P, (P, 0, 1), (P, 0, 1), (P, 0, 1)), (0, 0), 4, 4, "soft", "none", 0
    )
    formula = launch.Formula(
        *(("bce",), (1.0,), (0.5,), (), (False,), (False,), (1.0, 1.0, 0.0, 0.0)),
        *("mean", False, "keep", None),
    )
    hopper = launch.Device(132, True, hopper=True)
    assert single_plan._tile_for(layout, formula, hopper) is not None
    for changed in (
        {"class_weighted": True},
        {"ignore_index": 255.0},
        {"absent": "skip"},
        {"batch": True},
        {"reduction": "none"},
        {"region_weights": ()},  # early_plan.plan_points
    ):
        assert single_plan._tile_for(layout, formula._replace(**changed), hopper) is None
    for changed in (
        {"valid_kind": "sample"},
        {"targets_bytes": 1},  # which may lie anywhere
        {"targets_bytes": 2},
        {"logits_bytes": 2},
        {"logits": (2 * P, 0, 1)},
        {"targets": (P, 0, 2)},
        {"P": P - 8},
    ):
        assert single_plan._tile_for(layout._replace(**changed), formula, hopper) is None
    assert single_plan._tile_for(layout, formula, launch.Device(132, True)) is None
    bytes_ = layout._replace(targets_bytes=1, targets_kind="unsigned", aligned=True)
    assert single_plan._tile_for(bytes_, formula, hopper) is not None


def test_of_changing_sizes_one_kernel_is_compiled():
    """That of the first; it serves the others too, where it leaves few programs idle."""
    from fastseg_losses.kernels import launch, single_plan

    formula = launch.Formula(
        *(("bce",), (1.0,), (0.5,), (), (False,), (False,), (1.0, 1.0, 0.0, 0.0)),
        *("mean", False, "keep", None),
    )
    device = launch.Device(132, True, hopper=True)

    def admitted(N, P, formula=formula):
        strides = ((P, 0, 1),) * 3
        layout = launch.Layout(N, 1, P, *strides, (0, 0), 4, 4, "soft", "none", 0)
        return single_plan.admit(single_plan.plan_single(layout, formula, device))

    first = admitted(40, 10**6)
    assert first.admitted and first.tile == SingleTile(245, 1, 4, 8, 3, 1, 2)
    others = [admitted(N, P) for N, P in ((32, 1 << 20), (20, 960**2), (128, 1 << 18))]
    assert [plan.tile[:2] for plan in others] == [(256, 1), (225, 1), (64, 4)]
    for plan in others:
        assert plan.admitted and plan.compiled == first.compiled
        assert plan.forward_launch().constexprs == first.forward_launch().constexprs
    assert admitted(24, 736 * 736) is None  # half of the programs would be idle
    assert admitted(20, 1_081_344) is None  # 264 programs a team, more than it has places for
    # slices end where planes do: this kernel does not look whether they do
    even = formula._replace(reduction="sum")
    assert admitted(32, 1 << 20, even) and admitted(128, 1 << 18, even)
    assert admitted(40, 10**6, even) is None


def draw(shape, device, targets=torch.float32):
    logits = torch.randn(shape, device=device) * 4
    return logits, (torch.rand(shape, device=device) < 0.3).to(targets)


@pytest.fixture
def cuda():
    device = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("needs compute capability 9.0")
    return device


@pytest.fixture(params=TILES)
def forced(request, monkeypatch):
    """Every call that could take the single launch takes it, with this tile."""
    from fastseg_losses.kernels import single_plan

    tile = TILES[request.param]

    def covering(groups, pixels, *_):
        tiles = -(-pixels // (tile.team * 128 * tile.num_warps))
        return tile._replace(tiles=max(tiles, tile.tiles))

    monkeypatch.setattr(single_plan, "single_tile", covering)
    plans.PLANS.clear()
    yield
    plans.PLANS.clear()


def taken():
    """Whether every plan in use has the single launch."""
    from fastseg_losses.kernels.single_plan import SinglePlan

    return bool(plans.PLANS) and all(type(p.early) is SinglePlan for p in plans.PLANS.values())


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("row", REGIONAL, ids=ids(REGIONAL))
def test_every_loss_against_float64(row, reduction, forced, cuda):
    logits, targets = draw((3, 2, 48, 80), cuda)
    check_against_float64(
        lambda **k: row.build(mode="multilabel", reduction=reduction, **k), logits, targets
    )
    assert taken()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "targets", [torch.float32, torch.int32, torch.uint8, torch.int8, torch.bool], ids=str
)
@pytest.mark.parametrize(
    "shape", [(2, 1, 16), (2, 1, 64, 64), (7, 1, 61, 48), (4, 3, 8, 8, 8)], ids=str
)
def test_targets_and_shapes(shape, targets, forced, cuda):
    logits, masks = draw(shape, cuda, targets)
    if targets.is_floating_point:
        masks = torch.rand(shape, device=cuda)
    check_against_float64(
        lambda **k: CombinedSegmentationLoss(mode="multilabel", bce_pos_weight=2.0, **k),
        logits,
        masks,
    )
    assert taken()


@pytest.mark.gpu
def test_bool_masks_of_other_bytes_than_1(forced, cuda):
    """Any byte but 0 is True, as in a mask of 0 and 255 that is viewed as bool."""
    logits, masks = draw((3, 1, 48, 80), cuda, torch.uint8)
    criterion = CombinedSegmentationLoss()
    expected = run(criterion, logits, masks.bool(), dloss=torch.ones(()))
    found = run(criterion, logits, (masks * 255).view(torch.bool), dloss=torch.ones(()))
    assert taken()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_two_warps_hold_a_member_where_their_sums_meet():
    """Words change while they are read: one that read too early must not stand for the other."""
    from fastseg_losses.kernels.single_plan import block_of_team

    for team, num_warps in itertools.product(
        (1, 8, 16, 31, 32, 33, 34, 50, 64, 65, 200, 264), (4, 8)
    ):
        block = block_of_team(SingleTile(team, 1, 4, num_warps, 3, 1, 2))
        assert block >= team and block & (block - 1) == 0
        assert block == 32 or block >= 32 * num_warps  # each warp has all, or none shares


@pytest.mark.gpu
def test_many_groups_go_round_the_ring(forced, cuda):
    """More groups than the words of a team have places for."""
    logits, masks = draw((24, 2, 32, 40), cuda, torch.bool)
    check_against_float64(
        lambda **k: CombinedSegmentationLoss(mode="multilabel", **k), logits, masks
    )
    assert taken()


@pytest.mark.gpu
def test_byte_masks_anywhere(forced, cuda):
    """Bytes are copied four at a time; where they start elsewhere, two launches serve."""
    logits, masks = draw((3, 1, 48, 80), cuda, torch.uint8)
    shifted = torch.empty(masks.numel() + 1, dtype=torch.uint8, device=cuda)[1:].view(masks.shape)
    check_against_float64(lambda **k: CombinedSegmentationLoss(**k), logits, shifted.copy_(masks))
    assert not taken()


@pytest.mark.gpu
def test_any_upstream_gradient_and_the_same_bits(forced, cuda):
    check_any_upstream_gradient(CombinedSegmentationLoss(), *draw((3, 1, 64, 96), cuda))
    assert taken()


@pytest.mark.gpu
def test_backward_twice_through_a_retained_graph(forced, cuda):
    check_backward_twice(CombinedSegmentationLoss(), *draw((2, 1, 64, 96), cuda))
    assert taken()


@pytest.mark.gpu
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", REGIONAL, ids=ids(REGIONAL))
def test_nonfinite_logits_and_bad_targets_are_counted(row, bad, forced, cuda):
    logits, masks = draw((4, 1, 64, 64), cuda)
    logits[1, 0, 3, 4], logits[3, 0, 60, 60] = bad, bad
    x, criterion = logits.requires_grad_(), row.build().to(cuda)
    loss, stats = criterion(x, masks, return_stats=True)
    assert stats.nonfinite == 2
    plain = row.build(backend="torch").to(cuda)
    assert torch.isfinite(loss) == torch.isfinite(plain(logits, masks))
    masks = torch.where(torch.rand(masks.shape, device=cuda) < 0.01, 255.0, masks)
    for given in (masks, masks.to(torch.uint8), masks.to(torch.int8)):  # there it is -1
        _, stats = criterion(x, given, return_stats=True)
        assert stats.bad_targets == (masks == 255).sum() and taken()
        torch.cuda.synchronize()
        with pytest.raises(ValueError, match="earlier call"):
            criterion(x, given)


@pytest.mark.gpu
@pytest.mark.parametrize("log_loss", [False, True])
@pytest.mark.parametrize("floor", [0.0, 1e-8, 900.0])
def test_empty_groups_without_smoothing_and_floors(floor, log_loss, forced, cuda):
    """A denominator of 0 makes the score 1; a floor (of nnU-Net's Dice, say) is never 0."""
    logits, masks = draw((3, 2, 48, 80), cuda)
    logits[1, 0], masks[1, 0], logits[2, 1], masks[2, 1] = -1000, 0, 1000, 1

    def build(**k):
        criterion = DiceLoss(mode="multilabel", smooth=0.0, log_loss=log_loss, **k)
        (term,) = criterion.spec.regions
        criterion.spec = replace(criterion.spec, regions=(replace(term, floor=floor),))
        return criterion

    check_against_float64(build, logits, masks)
    assert taken()
    check_two_launches_agree(build(), logits, masks, lambda: True)


@pytest.mark.gpu
def test_numbers_rise_and_bits_repeat(forced, cuda):
    """What a launch leaves behind is never taken for the next one's."""
    logits, masks = draw((5, 2, 64, 80), cuda)
    criterion = CombinedSegmentationLoss(mode="multilabel", iou_weight=0.1)
    first = run(criterion, logits, masks, dloss=torch.ones(()))
    (plan,) = plans.PLANS.values()
    (counters,) = plan.early.counters.values()
    done, number = counters[:2].tolist()  # of all such launches on this stream
    steps = -(-10 // plan.early.tile.teams)
    assert done == 0
    for _ in range(20):
        again = run(criterion, logits, masks, dloss=torch.ones(()))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert counters[:2].tolist() == [0, number + 20 * steps]
    # numbers are compared, not ordered: they may run over
    counters[1] = 2**31 - 3
    for _ in range(3):
        again = run(criterion, logits, masks, dloss=torch.ones(()))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("targets", [torch.float32, torch.uint8], ids=str)
def test_one_launch_each_way_without_a_sync(targets, cuda):
    plans.PLANS.clear()
    logits, masks = draw((32, 1, 1024, 1024), cuda, targets)
    check_one_launch_each_way(CombinedSegmentationLoss(), logits, masks, "_single_kernel")
    assert taken()


@pytest.mark.gpu
@pytest.mark.parametrize("targets", [torch.float32, torch.bool], ids=str)
def test_large_inputs_and_the_two_launches_agree(targets, cuda):
    from fastseg_losses.kernels import single_plan

    for shape in [(32, 1, 1000, 1024), (128, 1, 512, 512), (600, 1, 272, 256)]:
        plans.PLANS.clear()
        single_plan._COMPILED.clear()
        check_two_launches_agree(CombinedSegmentationLoss(), *draw(shape, cuda, targets), taken)


@pytest.mark.gpu
def test_shapes_divided_by_another_ones_kernel(cuda):
    """Tails, more teams, fewer: all by the kernel that was compiled for the first."""
    from fastseg_losses.kernels import single_plan

    compiled = set()
    for shape in [(40, 1, 1000, 1000), (32, 1, 1024, 1024), (128, 1, 512, 512), (70, 1, 512, 528)]:
        plans.PLANS.clear()
        check_two_launches_agree(CombinedSegmentationLoss(), *draw(shape, cuda), taken)
        compiled |= {p.early.compiled for p in plans.PLANS.values() if p.early is not None}
    assert len(compiled) == 1 and len(single_plan._COMPILED) == 1


@pytest.mark.gpu
def test_twenty_large_shapes_compile_for_the_first_two(cuda, monkeypatch):
    from fastseg_losses.kernels import gradient, sums
    from fastseg_losses.kernels.single import _single_kernel

    plans.PLANS.clear()
    criterion, built, counts = CombinedSegmentationLoss(focal_gamma=1.25), [], []
    kernels = (_single_kernel, sums._sums_forward_kernel, gradient._gradient_kernel)
    for kernel in (*kernels, gradient._settle_kernel):
        create = kernel.compile
        monkeypatch.setattr(
            kernel, "compile", lambda *a, _c=create, **k: (built.append(1), _c(*a, **k))[1]
        )
    for k in range(20):
        side = 736 + 64 * (k % 4)  # from 60 MiB on; at 800, the second, the first kernel would idle
        logits, masks = draw((24 + k % 3, 1, side, side), cuda, torch.uint8)
        x = logits.requires_grad_()
        criterion(x, masks).backward()
        counts.append(len(built))
    assert 0 < counts[0] <= counts[1] and counts[1:] == [counts[1]] * 19, counts


@pytest.mark.gpu
def test_class_weights_are_not_lost(forced, cuda):
    logits, targets = draw((3, 2, 48, 80), cuda)
    options = {"mode": "multilabel", "class_weights": [1.0, 5.0]}
    check_against_float64(lambda **k: CombinedSegmentationLoss(**options, **k), logits, targets)


@pytest.mark.gpu
def test_a_captured_call_takes_two_launches(forced, cuda, monkeypatch):
    criterion = CombinedSegmentationLoss()
    check_a_capture_takes_two_launches(criterion, lambda: draw((4, 1, 64, 128), cuda), monkeypatch)
    assert taken()
