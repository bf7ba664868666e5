"""Multiclass mode on the kernels against the reference, interpreted or on the device."""

import pytest
import torch
from losses_table import ALL, ALL_MULTICLASS, MULTICLASS, alphas, ids
from oracle import check_against_float64, rms_error, run

from fastseg_losses import (
    BCELoss,
    CombinedSegmentationLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    formulas,
    ops,
    plans,
    region_sums,
)
from fastseg_losses.kernels import launch, multiclass_plan

# The interpreter takes a second a loss: there, those that go through every branch of the finish.
FEW = MULTICLASS if torch.cuda.is_available() else [MULTICLASS[k] for k in (0, 1, 5)]


def draw(shape, device, dtype=torch.float32, kind=torch.int64):
    """Logits (N, C, *) and class ids (N, *) that the logits get right more often than not."""
    logits = torch.randn(shape, device=device) * 3
    ids = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
    logits.scatter_add_(1, ids[:, None], torch.full_like(logits, 2.0)[:, :1])
    return logits.to(dtype), ids.to(kind)


def soften(logits):
    return torch.softmax(torch.randn_like(logits, dtype=torch.float32) * 2, 1)


def combined(**arguments):
    return CombinedSegmentationLoss(mode="multiclass", **arguments)


def DiceCE(**arguments):
    return combined(focal_weight=0.0, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row", ALL_MULTICLASS, ids=ids(ALL_MULTICLASS))
def test_every_loss_against_float64(row, dtype, device):
    logits, targets = draw((2, 5, 9, 15), device, dtype)
    check_against_float64(alphas(row, 5).build, logits, targets)


@pytest.mark.parametrize("row", ALL_MULTICLASS, ids=ids(ALL_MULTICLASS))
def test_every_loss_with_soft_targets(row, device):
    logits, _ = draw((2, 5, 9, 13), device)
    build = alphas(row, 5).build
    weights = [1.0, 2.0, 0.0, 0.5, 3.0]
    check_against_float64(lambda **k: build(class_weights=weights, **k), logits, soften(logits))


REST = ALL if torch.cuda.is_available() else [*ALL[5:7], *ALL[13:]]


@pytest.mark.parametrize("row", REST, ids=ids(REST))
@pytest.mark.parametrize("soft", [False, True])
def test_each_class_against_the_rest(row, soft, device):
    """activation="sigmoid": what multilabel gives on the one-hot masks, but for the statistics."""
    logits, targets = draw((2, 5, 9, 13), device)
    given = soften(logits) if soft else targets
    one_hot = torch.nn.functional.one_hot(targets, 5).movedim(-1, 1)
    extra = {"class_weights": [1.0, 2.0, 0.0, 0.5, 3.0]}
    ours = check_against_float64(
        lambda **k: row.build(mode="multiclass", activation="sigmoid", **extra, **k), logits, given
    )
    plain = row.build(mode="multilabel", backend="torch", **extra).to(device)
    expected = plain(logits.double(), given if soft else one_hot)
    torch.testing.assert_close(ours.loss.double(), expected, rtol=3e-6, atol=1e-6)


KINDS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_integer_dtype_of_ids(kind, device):
    logits, targets = draw((2, 3, 16, 17), device, kind=kind)
    ours = check_against_float64(lambda **k: combined(ignore_index=-100, **k), logits, targets)
    channel = run(combined(backend="triton"), logits, targets[:, None], dloss=torch.tensor(1.0))
    assert torch.equal(ours.loss, channel.loss)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float16, torch.bfloat16])
def test_one_hot_targets_are_soft_targets(kind, device):
    logits, targets = draw((2, 3, 16, 17), device)
    one_hot = torch.nn.functional.one_hot(targets, 3).movedim(-1, 1)
    ours = check_against_float64(combined, logits, one_hot.to(kind))
    expected = combined(backend="torch")(logits, targets)
    torch.testing.assert_close(ours.loss, expected, rtol=1e-5, atol=1e-6)


CLASSES = [2, 19, 21, 41, 150, 256]  # 1 to 32 lanes
if torch.cuda.is_available():
    CLASSES += [3, 5, 20, 40, 80, 118, 321, 1024]


@pytest.mark.parametrize("C", CLASSES)
def test_numbers_of_classes(C, device):
    logits, targets = draw((1, C, 9, 11), device, kind=torch.int32)
    weights = [0.5 + c % 4 for c in range(C)]
    ids = targets.clamp(max=127).to(torch.uint8 if C % 2 else torch.int8)  # of fewer ids than C
    check_against_float64(DiceCE, logits, ids)
    check_against_float64(lambda **k: combined(class_weights=weights, **k), logits, targets)
    check_against_float64(combined, logits.bfloat16(), soften(logits))


SHAPES = [
    (1, 3),
    (5, 2, 1),
    (3, 4, 1, 1),
    (2, 3, 1024),
    (1, 3, 1025),
    (2, 3, 7, 5, 3),
    (9, 4, 8, 8),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape, device):
    check_against_float64(combined, *draw(shape, device))


LAYOUTS = {
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "cropped": lambda x: torch.nn.functional.pad(x, (3, 3, 2, 2))[..., 2:-2, 3:-3],
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch-last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("C", [4, 23])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, C, device):
    logits, targets = draw((2, C, 8, 12), device)
    mask = torch.rand(2, 8, 12, device=device) < 0.7
    moved = LAYOUTS[layout]
    check_against_float64(combined, moved(logits), targets, moved(mask))
    check_against_float64(combined, logits, moved(targets))
    check_against_float64(combined, moved(logits), moved(soften(logits)))


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "batch-last", "unaligned"])
def test_layouts_that_are_read_as_they_are(layout, device):
    """No copy: the plan that is kept is for the tensors that came."""
    logits, targets = draw((3, 4, 16, 20), device)
    plans.PLANS.clear()
    combined(backend="triton")(LAYOUTS[layout](logits), targets)
    assert [plan is not None for plan in plans.PLANS.values()] == [True]


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("row", FEW, ids=ids(FEW))
def test_reductions_weights_and_masks(row, reduction, background, device):
    logits, targets = draw((2, 4, 9, 11), device)
    targets[1] = targets[1] % 3  # class 3 is absent there
    sample = torch.tensor([False, True], device=device)
    pixel = torch.rand(2, 1, 9, 11, device=device) < 0.5
    pixel[0] = False  # a sample without a valid pixel leaves the mean
    hole = torch.rand(targets.shape, device=device) < 0.3
    weights = {"class_weights": [1.0, 2.0, 0.0, 0.5]}
    for valid, target, extra in (
        (sample, targets, {}),
        (pixel, targets, weights),
        (pixel, soften(logits), {"absent": "skip", **weights}),
        (sample, torch.where(hole, 255, targets).to(torch.uint8), {"ignore_index": 255}),
        (None, torch.where(hole, -100, targets), {"ignore_index": -100, "absent": "skip"}),
        (None, targets, {"ignore_index": 0, **weights}),
    ):
        check_against_float64(
            lambda e=extra, **k: alphas(row, 4).build(
                reduction=reduction, include_background=background, **e, **k
            ),
            logits,
            target,
            valid,
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("row", FEW, ids=ids(FEW))
def test_batch(row, reduction, device):
    if row.name == "combined" and reduction == "none":
        pytest.skip("a ValueError: tests/test_losses.py")
    logits, targets = draw((2, 4, 9, 11), device)
    targets[targets == 2] = 1
    valid = torch.rand(2, 9, 11, device=device) < 0.5
    for extra in ({"absent": "keep"}, {"absent": "skip", "include_background": False}):
        check_against_float64(
            lambda e=extra, **k: alphas(row, 4).build(
                batch=True, reduction=reduction, class_weights=[1.0, 2.0, 3.0, 0.5], **e, **k
            ),
            logits,
            targets,
            valid,
        )


def test_reductions_against_the_rest(device):
    logits, targets = draw((2, 4, 9, 11), device)
    valid = torch.rand(2, 9, 11, device=device) < 0.5
    for reduction in ("mean", "sum", "none"):
        for extra in ({"include_background": False}, {"absent": "skip"}):
            check_against_float64(
                lambda e=extra, r=reduction, **k: combined(
                    activation="sigmoid", reduction=r, class_weights=[1.0, 2.0, 3.0, 0.5], **e, **k
                ),
                logits,
                targets,
                valid,
            )


def test_positive_weights_against_the_rest(device):
    logits, targets = draw((2, 5, 9, 11), device)
    for weights in (3.0, [1.0, 2.0, 3.0, 4.0, 5.0]):
        check_against_float64(
            lambda w=weights, **k: BCELoss(
                pos_weight=w, label_smoothing=0.1, mode="multiclass", activation="sigmoid", **k
            ),
            logits,
            targets,
        )


def test_many_samples_and_many_programs(device):
    check_against_float64(DiceCE, *draw((70, 3, 5, 5), device))
    logits, targets = draw((2, 3, 1500), device, kind=torch.uint8)
    plans.PLANS.clear()
    check_against_float64(DiceCE, logits, targets)
    assert max(plan.splits for plan in plans.PLANS.values() if plan) > 1


@pytest.mark.parametrize("team", [1, 3])
def test_teams_of_programs_and_chunks_of_tiles(team, device, monkeypatch):
    """Teams with a partial last one, and more tiles than a thread can count pixels of."""
    monkeypatch.setattr(multiclass_plan, "team_of", lambda splits, at_once: team)
    monkeypatch.setattr(multiclass_plan, "MAX_COUNT", 4)
    for C, row in ((3, 31), (30, 166)):
        # four programs, on any device
        monkeypatch.setattr(multiclass_plan, "CLASS_WORKSPACE_BYTES", 4 * 4 * row)
        plans.PLANS.clear()
        logits, targets = draw((1, C, 6001), device, kind=torch.uint8)
        check_against_float64(DiceCE, logits, targets)
        for plan in [plan for plan in plans.PLANS.values() if plan]:
            assert plan.splits == 4 and plan.num_counters == 2 + -(-4 // team)
            assert plan.splits * plan.tile.rows * plan.tile.width < 6001  # so several chunks
            assert plan.counters and not any(c.any() for c in plan.counters.values())
    plans.PLANS.clear()  # of plans that no other test expects


@pytest.mark.parametrize("samples", [1, 600])
def test_no_program_counts_beyond_what_float32_holds(samples):
    for C in (2, 19, 118, 1024):
        at = (C << 26, 1 << 26, 1)
        layout = launch.Layout(
            *(samples, C, 1 << 26, at, (1 << 26, 0, 1), at),
            **{"valid": (0, 0), "logits_bytes": 2, "targets_bytes": 1, "targets_kind": "ids"},
            **{"valid_kind": "none", "pos_weight_stride": 0},
        )
        criterion = combined()
        formula = formulas.formula_of(criterion.spec, False, False, hard=True)
        plan = multiclass_plan.ClassPlan(layout, formula, launch.Device(132, True))
        tile = plan.tile
        tiles = -(-(1 << 26) // (tile.rows * tile.width))
        each = -(-tiles // plan.splits) * tile.rows * tile.width
        assert each * tile.lanes <= 1 << 24


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_region_sums(activation, device):
    logits, targets = draw((2, 4, 9, 11), device)
    targets[0, :3] = 255
    weight = torch.randn(4, 2, 4, dtype=torch.float64, device=device)
    results = []
    for backend, x in (("triton", logits), ("torch", logits.double())):
        x = x.clone().requires_grad_()
        sums = region_sums(
            x,
            targets.to(torch.uint8),
            mode="multiclass",
            ignore_index=255,
            activation=activation,
            backend=backend,
        )
        (torch.stack(sums) * weight.to(x)).sum().backward()
        results.append((torch.stack(sums).double(), x.grad.double()))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


# ---- edges


@pytest.mark.parametrize("value", [1e4, -1e4, 1e6, 1e10, 3e38, 80.0, 30.0, 0.0])
def test_saturated_logits(value, device):
    """One class dominates: right there the loss is 0, elsewhere it is the value itself."""
    logits, targets = draw((1, 4, 8, 8), device)
    logits = torch.zeros_like(logits)
    logits[:, 1] = value
    for gamma in (0.0, 0.5, 3.0):
        build = {"focal_gamma": gamma, "iou_weight": 1.0, "tversky_weight": 1.0}
        check_against_float64(lambda b=build, **k: combined(**b, **k), logits, targets * 0 + 1)
        if abs(value) < 1e30:
            check_against_float64(lambda b=build, **k: combined(**b, **k), logits, targets)


@pytest.mark.parametrize("margin", [9.0, 16.0, 25.0])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0])
def test_confident_pixels(gamma, margin, device):
    """Large logits, right by far: loss and gradient are small, and of their right size.

    1 + 3e-4 is rounded by PyTorch and by us, in another order of addition: 1e-4 of what is left,
    and with the margin all of it.
    """
    logits, targets = draw((2, 4, 8, 8), device)
    logits = logits * 0.1 + 100.0
    logits.scatter_add_(1, targets[:, None], torch.full_like(logits, margin)[:, :1])
    for criterion in (CrossEntropyLoss, lambda **k: FocalLoss(mode="multiclass", gamma=gamma, **k)):
        ours = run(criterion(backend="triton"), logits, targets)
        peer = run(criterion(backend="torch"), logits, targets)
        exact = run(criterion(backend="torch"), logits.double(), targets)
        assert abs(ours.loss - exact.loss) <= 2 * abs(peer.loss - exact.loss) + 1e-6 * exact.loss
        theirs = rms_error(peer.dlogits, exact.dlogits)
        assert rms_error(ours.dlogits, exact.dlogits) < 1.5 * theirs + 1e-6


def test_classes_that_are_ruled_out_cost_nothing(device):
    """A logit of -inf where the class is not the target: as in PyTorch, the loss is finite."""
    logits, targets = draw((2, 5, 8, 8), device)
    logits[:, 4] = float("-inf")
    targets = targets % 4
    for criterion in (combined(backend="triton"), CrossEntropyLoss(backend="triton")):
        loss, stats = criterion(logits, targets, return_stats=True)
        x = logits.clone().requires_grad_()
        plain = type(criterion)(mode="multiclass", backend="torch")
        torch.testing.assert_close(loss, plain(logits, targets))
        criterion(x, targets).backward()
        assert torch.isfinite(x.grad).all() and (x.grad[:, 4] == 0).all()
        assert stats.nonfinite == 128


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", FEW, ids=ids(FEW))
def test_nonfinite_logits_show(row, bad, device):
    logits, targets = draw((2, 3, 16, 16), device)
    logits[0, 1, 3, 4] = bad
    criterion = alphas(row, 3).build(backend="triton")
    loss, stats = criterion(logits, targets, return_stats=True)
    assert stats.nonfinite == 1 and not torch.isfinite(loss)
    valid = torch.tensor([False, True], device=device)
    loss, stats = criterion(logits, targets, valid, return_stats=True)
    assert torch.isfinite(loss) and stats.nonfinite == 0


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_invalid_pixels_may_hold_anything(activation, device):
    logits, targets = draw((2, 3, 16, 24), device)
    mask = torch.rand(2, 16, 24, device=device) < 0.5
    dirty = torch.where(mask[:, None], logits, float("nan"))
    stray = torch.where(mask, targets, 77)
    criterion = combined(activation=activation, backend="triton")
    clean, spoilt = run(criterion, logits, targets, mask), run(criterion, dirty, stray, mask)
    assert torch.equal(clean.loss, spoilt.loss) and torch.equal(clean.stats, spoilt.stats)
    assert torch.equal(clean.dlogits, spoilt.dlogits)
    assert (spoilt.dlogits.movedim(1, -1)[~mask] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_valid_is_zero_with_a_live_graph(reduction, device):
    logits, targets = draw((2, 3, 16, 24), device)
    for row in FEW:
        criterion = alphas(row, 3).build(reduction=reduction, backend="triton")
        for valid in (torch.zeros(2, dtype=torch.bool), torch.zeros(2, 16, 24, dtype=torch.bool)):
            result = run(criterion, logits, targets, valid.to(device))
            assert (result.loss == 0).all() and (result.dlogits == 0).all()
            assert (result.stats == 0).all()


@pytest.mark.parametrize("bad", [3, -1, 255, 2**32])
def test_ids_out_of_range_raise_without_a_sync(bad, device):
    """The loss and its gradient are NaN, and the next call says why."""
    logits, targets = draw((2, 3, 16, 16), device)
    targets[1, 3, 4] = bad
    criterion = combined(backend="triton")
    x = logits.clone().requires_grad_()
    loss, stats = criterion(x, targets, return_stats=True)
    loss.backward()
    assert torch.isnan(loss) and torch.isnan(x.grad).all() and stats.bad_targets == 1
    with pytest.raises(ValueError, match="expected class ids from 0 to 2 .* got 1 valid targets"):
        stats.cpu()
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="class ids from 0 to C - 1 .* some of an earlier call"):
        criterion(logits, targets)
    criterion(logits, targets.clamp(0, 2))  # said once
    each = combined(reduction="none", backend="triton")(logits, targets)
    assert torch.equal(each.isnan(), torch.tensor([False, True], device=device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="some of an earlier call"):
        criterion(logits, targets)


def test_region_sums_of_ids_out_of_range_have_no_gradient(device):
    """NaN, as their values: of the sample with the bad id, and of no other."""
    logits, targets = draw((2, 3, 8, 8), device)
    targets[1, 3, 4] = 3
    x = logits.requires_grad_()
    sums = region_sums(x, targets, mode="multiclass", backend="triton")
    assert torch.equal(sums.I.isnan().any(1), torch.tensor([False, True], device=device))
    sums.I.sum().backward()
    assert torch.isfinite(x.grad[0]).all() and torch.isnan(x.grad[1]).all()
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="some of an earlier call"):
        region_sums(x, targets, mode="multiclass", backend="triton")


@pytest.mark.parametrize("stray", [255.0, -0.5, float("nan")])
def test_soft_targets_out_of_range_raise_without_a_sync(stray, device):
    logits, _ = draw((2, 3, 16, 16), device)
    soft = soften(logits)
    soft[1, 2, 3, 4] = stray
    _, stats = combined(backend="triton")(logits, soft, return_stats=True)
    assert stats.bad_targets == 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="probabilities in"):
        combined(backend="triton")(logits, soft)


def test_ties_go_to_the_first_class(device):
    logits, targets = draw((1, 25, 8, 8), device)
    logits = torch.zeros_like(logits)
    _, stats = combined(backend="triton")(logits, targets, return_stats=True)
    assert stats.class_pred[0] == 1 and stats.tp == (targets == 0).sum()


def test_counters_are_left_at_zero(device):
    for shape in ((2, 3, 1000), (3, 40, 9, 9)):
        combined(backend="triton")(*draw(shape, device))
    counters = [c for plan in plans.PLANS.values() if plan for c in plan.counters.values()]
    assert counters and all((c == 0).all() for c in counters)


def test_same_inputs_same_bits(device):
    logits, targets = draw((2, 3, 900), device)
    criterion = combined(iou_weight=0.1, backend="triton")
    first = run(criterion, logits, targets)
    for _ in range(3):
        again = run(criterion, logits, targets)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_upstream_gradients(device):
    logits, targets = draw((2, 3, 8, 8), device)
    x = logits.clone().requires_grad_()
    loss = combined(backend="triton")(x, targets)
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    (loss * 1024.0).backward()
    torch.testing.assert_close(x.grad, once * 1025.0)
    for criterion in (DiceLoss, CrossEntropyLoss):
        each = criterion(mode="multiclass", reduction="none", backend="triton")
        x = logits.clone().requires_grad_()
        loss = each(x, targets)
        loss.sum().backward()  # an expanded upstream gradient
        expanded = x.grad.clone()
        x = logits.clone().requires_grad_()
        each(x, targets).backward(torch.ones_like(loss))
        assert torch.equal(expanded, x.grad)
        dloss = torch.rand(*loss.shape, 2, device=device)
        x.grad = None
        each(x, targets).backward(dloss[..., 0])  # strides of its own
        strided = x.grad.clone()
        x.grad = None
        each(x, targets).backward(dloss[..., 0].contiguous())
        assert torch.equal(strided, x.grad)


def test_stats_out_is_written_in_place(device):
    logits, targets = draw((2, 3, 8, 8), device)
    criterion = combined(backend="triton")
    ring = torch.full((3, criterion.stats_size(3)), -7.0, device=device)
    _, stats = criterion(logits, targets, return_stats=True, stats_out=ring[1])
    _, expected = criterion(logits, targets, return_stats=True)
    assert torch.equal(ring[1], expected.tensor) and stats.class_tp.shape == (3,)
    assert (ring[0] == -7).all() and (ring[2] == -7).all()
    with pytest.raises(ValueError, match=r"stats_out: .* shape \(30,\)"):
        criterion(logits, targets, stats_out=ring[1, :15])


@pytest.mark.parametrize("kind", ["ids", "soft", "sigmoid", "regions", "batch"])
def test_operators_pass_opcheck(kind, device):
    logits, targets = draw((2, 3, 8, 8), device)
    spec = combined().spec
    if kind == "soft":
        targets = soften(logits)
    elif kind == "sigmoid":
        spec = combined(activation="sigmoid", reduction="none").spec
    elif kind == "regions":
        spec = DiceLoss(mode="multiclass", reduction="none", include_background=False).spec
    elif kind == "batch":
        spec = DiceLoss(mode="multiclass", reduction="none", batch=True).spec
    x = LAYOUTS["channels_last"](logits).requires_grad_()
    torch.library.opcheck(ops.loss_forward, (x, targets, None, None, None, spec.key))
    loss, _, table = ops.loss_forward(logits, targets, None, None, None, spec.key)
    inputs = (torch.ones_like(loss), table, logits, targets, None, None, None, spec.key)
    torch.library.opcheck(ops.loss_backward, inputs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiled_fullgraph_equals_eager(backend, device):
    torch._dynamo.reset()
    criterion = combined(backend=backend, class_weights=[1.0, 2.0, 3.0]).to(device)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def step(x, t):
        loss, stats = criterion(x * 2, t, return_stats=True)
        return loss * 3, stats.class_pred

    for size in range(4, 15):  # more than Dynamo compiles before it gives up
        logits, targets = draw((1, 3, size, size), device)
        x = logits.clone().requires_grad_()
        loss, shares = step(x, targets)
        loss.backward()
        y = logits.clone().requires_grad_()
        eager, stats = criterion(y * 2, targets, return_stats=True)
        (eager * 3).backward()
        torch.testing.assert_close(loss, eager * 3)
        torch.testing.assert_close(shares, stats.class_pred)
        torch.testing.assert_close(x.grad, y.grad)
