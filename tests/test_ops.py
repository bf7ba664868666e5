"""The fused path against the reference, interpreted or on the device (conftest.py)."""

import copy

import pytest
import torch
from losses_table import ALL, DEFAULTS, ids
from oracle import check_against_float64, run

from fastseg_losses import (
    BCELoss,
    CombinedSegmentationLoss,
    DiceLoss,
    backends,
    ops,
    plans,
    region_sums,
)

TARGETS = {
    "bool": lambda r: r < 0.3,
    "uint8": lambda r: (r < 0.3).to(torch.uint8),
    "int8": lambda r: (r < 0.3).to(torch.int8),
    "int16": lambda r: (r < 0.3).to(torch.int16),
    "int32": lambda r: (r < 0.3).to(torch.int32),
    "int64": lambda r: (r < 0.3).to(torch.int64),
    "float32": lambda r: (r < 0.3).float(),
    "float64": lambda r: (r < 0.3).double(),
    "soft": lambda r: r,
    "soft-float16": lambda r: r.half(),
    "soft-bfloat16": lambda r: r.bfloat16(),
}


def draw(shape, device, dtype=torch.float32, targets="uint8"):
    logits = (torch.randn(shape, device=device) * 4).to(dtype)
    return logits, TARGETS[targets](torch.rand(shape, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
def test_every_loss_against_float64(row, dtype, device):
    logits, targets = draw((2, 1, 37, 29), device, dtype)
    check_against_float64(row.build, logits, targets)


@pytest.mark.parametrize("kind", TARGETS)
def test_every_target_dtype(kind, device):
    logits, targets = draw((2, 3, 16, 17), device, targets=kind)
    check_against_float64(
        lambda **k: CombinedSegmentationLoss(mode="multilabel", **k), logits, targets
    )


SHAPES = [
    (1, 1),
    (5, 1),
    (3, 1, 1),
    (2, 1, 1024),
    (2, 1, 1025),
    (1, 1, 4099),
    (2, 3, 7, 5, 3),
    (4, 2, 64, 32),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape, device):
    logits, targets = draw(shape, device)
    check_against_float64(
        lambda **k: CombinedSegmentationLoss(mode="multilabel", **k), logits, targets
    )


def test_binary_without_channel(device):
    logits, targets = draw((3, 19, 23), device)
    ours = check_against_float64(CombinedSegmentationLoss, logits, targets)
    with_channel = run(
        CombinedSegmentationLoss(backend="triton"),
        logits[:, None],
        targets[:, None],
        dloss=torch.tensor(1.0),
    )
    assert torch.equal(ours.loss, with_channel.loss)


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "cropped": lambda x: torch.nn.functional.pad(x, (3, 3, 2, 2))[
        ..., 2:-2, 3:-3
    ],  # rows apart: copied
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),  # columns first: copied
    "batch-last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("which", ["logits", "targets", "both"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, which, device):
    logits, targets = draw((3, 4, 16, 32), device)
    if which != "targets":
        logits = LAYOUTS[layout](logits)
    if which != "logits":
        targets = LAYOUTS[layout](targets)
    mask = torch.rand(3, 16, 32, device=device) < 0.7
    for valid in (None, mask):
        check_against_float64(
            lambda **k: CombinedSegmentationLoss(mode="multilabel", **k), logits, targets, valid
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("row", DEFAULTS, ids=ids(DEFAULTS))
def test_reductions_weights_and_masks(row, reduction, device):
    logits, targets = draw((3, 4, 9, 31), device)
    sample = torch.tensor([True, False, True], device=device)
    pixel = torch.rand(3, 1, 9, 31, device=device) < 0.5
    pixel[2] = False  # a sample without a valid pixel leaves the mean
    ignoring = torch.where(torch.rand(targets.shape, device=device) < 0.3, 255, targets.long())
    for valid, target, extra in (
        (sample, targets, {}),
        (pixel, targets, {"class_weights": [1.0, 2.0, 0.0, 0.5]}),
        (sample, ignoring, {"ignore_index": 255, "absent": "skip"}),
        (
            None,
            ignoring.to(torch.int16),
            {"ignore_index": 255, "class_weights": [1.0, 2.0, 3.0, 4.0]},
        ),
    ):
        check_against_float64(
            lambda e=extra, **k: row.build(mode="multilabel", reduction=reduction, **e, **k),
            logits,
            target,
            valid,
        )


@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_batch(row, reduction, device):
    if row.name == "combined" and reduction == "none":
        pytest.skip("a ValueError: tests/test_losses.py")
    logits, targets = draw((3, 4, 9, 31), device)
    targets[:, 2] = 0
    for absent in ("keep", "skip"):
        check_against_float64(
            lambda a=absent, **k: row.build(
                mode="multilabel",
                batch=True,
                reduction=reduction,
                absent=a,
                class_weights=[1.0, 2.0, 3.0, 0.5],
                **k,
            ),
            logits,
            targets,
            torch.tensor([True, True, False], device=device),
        )


@pytest.mark.parametrize("shape", [(1, 1, 9, 31), (140, 1, 2, 3), (140, 3, 2, 3)], ids=str)
def test_batch_sums_of_few_and_of_many_records(shape, device):
    """From 129 records on, each sample's are added up first; one group is finished at once."""
    logits, targets = draw(shape, device)
    check_against_float64(
        lambda **k: CombinedSegmentationLoss(mode="multilabel", batch=True, **k), logits, targets
    )


@pytest.mark.parametrize(("reduction", "batch"), [("mean", False), ("mean", True), ("none", False)])
@pytest.mark.parametrize(
    "shape", [(1, 1, 16_385), (2, 1, 5000), (8, 1, 9, 7), (9, 1, 9, 7), (2, 4, 40, 30)], ids=str
)
def test_few_records_and_one_more_group(shape, reduction, batch, device):
    """Of up to 8 groups of up to 16 programs one program reads all records."""
    logits, targets = draw(shape, device)
    options = {"batch": batch, "reduction": reduction}
    options |= {"class_weights": [1.0, 2.0, 0.5, 3.0][: shape[1]]}
    build = lambda **k: CombinedSegmentationLoss(mode="multilabel", **options, **k)  # noqa: E731
    valid = torch.arange(shape[0], device=device) != 1
    check_against_float64(build, logits, targets, valid)


def test_many_groups_and_many_programs(device):
    """More groups than are read at once, and one group over many programs."""
    logits, targets = draw((50, 7, 5, 5), device)
    check_against_float64(
        lambda **k: CombinedSegmentationLoss(mode="multilabel", **k), logits, targets
    )
    logits, targets = draw((2, 1, 60_000), device)
    plans.PLANS.clear()
    CombinedSegmentationLoss(backend="triton")(logits, targets)
    (plan,) = plans.PLANS.values()
    assert plan.splits > 1
    check_against_float64(CombinedSegmentationLoss, logits, targets)


@pytest.mark.parametrize("value", [1e4, -1e4, 80.0, -80.0, 0.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_saturated_logits_are_finite(value, gamma, device):
    logits = torch.full((2, 1, 8, 8), value, device=device)
    targets = (torch.rand(2, 1, 8, 8, device=device) < 0.5).to(torch.uint8)
    criterion = CombinedSegmentationLoss(
        focal_gamma=gamma, iou_weight=1.0, tversky_weight=1.0, backend="triton"
    )
    result = run(criterion, logits, targets)
    assert torch.isfinite(result.loss) and torch.isfinite(result.dlogits).all()


def test_confident_pixels_keep_their_relative_accuracy(device):
    """Log(1 + exp(-|x|)) where 1 + e rounds: the sum of the losses of a nearly perfect net."""
    logits = torch.linspace(5, 40, 512, device=device).reshape(1, 1, 16, 32)
    targets = torch.ones_like(logits)
    exact = torch.nn.functional.softplus(-logits.double())
    for k in range(0, 512, 64):
        part = logits.flatten()[k : k + 64].reshape(1, 1, 8, 8)
        loss = BCELoss(reduction="sum", backend="triton")(
            part, targets.flatten()[k : k + 64].reshape(part.shape)
        )
        assert abs(float(loss) / float(exact.flatten()[k : k + 64].sum()) - 1) < 2e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", DEFAULTS, ids=ids(DEFAULTS))
def test_nonfinite_logits_show(row, bad, device):
    logits, targets = draw((2, 1, 16, 16), device)
    logits[0, 0, 3, 4] = bad
    criterion = row.build(backend="triton")
    plain = row.build(backend="torch")
    loss, stats = criterion(logits, targets, return_stats=True)
    assert stats.nonfinite == 1
    assert torch.isfinite(loss) == torch.isfinite(plain(logits, targets))
    valid = torch.tensor([False, True], device=device)
    loss, stats = criterion(logits, targets, valid, return_stats=True)
    assert torch.isfinite(loss) and stats.nonfinite == 0


def test_invalid_pixels_may_hold_anything(device):
    """NaN under the mask reaches neither loss nor gradient, and the gradient there is exactly 0."""
    logits, targets = draw((2, 1, 16, 24), device)
    mask = torch.rand(2, 16, 24, device=device) < 0.5
    dirty = torch.where(mask[:, None], logits, float("nan"))
    for row in DEFAULTS:
        criterion = row.build(backend="triton")
        clean_result, dirty_result = (
            run(criterion, logits, targets, mask),
            run(criterion, dirty, targets, mask),
        )
        assert torch.equal(clean_result.loss, dirty_result.loss)
        assert torch.equal(clean_result.dlogits, dirty_result.dlogits)
        assert (dirty_result.dlogits[~mask[:, None]] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_valid_is_zero_with_a_live_graph(reduction, device):
    logits, targets = draw((2, 1, 16, 24), device)
    for row in DEFAULTS:
        for valid in (torch.zeros(2, dtype=torch.bool), torch.zeros(2, 16, 24, dtype=torch.bool)):
            result = run(
                row.build(reduction=reduction, backend="triton"), logits, targets, valid.to(device)
            )
            assert (result.loss == 0).all() and (result.dlogits == 0).all()
            assert (result.stats == 0).all()


def test_targets_outside_the_unit_interval_raise_without_a_sync(device):
    logits = torch.randn(2, 1, 16, 16, device=device)
    targets = torch.full((2, 1, 16, 16), 255, dtype=torch.uint8, device=device)
    criterion = CombinedSegmentationLoss(backend="triton")
    _, stats = criterion(logits, targets, return_stats=True)
    assert stats.bad_targets == 512
    with pytest.raises(ValueError, match="0 and 255"):
        stats.cpu()
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="earlier call"):
        criterion(logits, targets // 255)
    criterion(logits, targets // 255)  # said once


@pytest.mark.parametrize("row", DEFAULTS, ids=ids(DEFAULTS))
def test_nan_targets_are_bad_targets(row, device):
    logits, targets = draw((2, 1, 16, 16), device, targets="float32")
    targets[1, 0, 3, 4] = float("nan")
    loss, stats = row.build(backend="triton")(logits, targets, return_stats=True)
    assert stats.bad_targets == 1 and stats.nonfinite == 0 and torch.isnan(loss)
    with pytest.raises(ValueError, match="targets: expected values in"):
        row.build(backend="torch")(logits.cpu(), targets.cpu())
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="earlier call"):
        row.build(backend="triton")(logits, targets)


def test_arguments_that_are_no_tensors(device):
    logits, targets = draw((2, 1, 4, 4), device)
    criterion = DiceLoss(backend="triton")
    with pytest.raises(TypeError, match="valid: expected a bool torch.Tensor or None, got list"):
        criterion(logits, targets, [True, False])
    with pytest.raises(TypeError, match="targets: expected a torch.Tensor, got list"):
        criterion(logits, targets.tolist())
    with pytest.raises(TypeError, match="stats_out: expected a torch.Tensor"):
        criterion(logits, targets, stats_out=[1.0])
    with pytest.raises(ValueError, match="backend: expected one of 'auto', 'triton', 'torch'"):
        region_sums(logits, targets, backend="cuda")


def test_counters_are_left_at_zero(device):
    for shape in ((2, 1, 40_000), (3, 4, 9, 9)):
        logits, targets = draw(shape, device)
        CombinedSegmentationLoss(mode="multilabel", backend="triton")(logits, targets)
    counters = [c for plan in plans.PLANS.values() if plan for c in plan.counters.values()]
    assert counters and all((c == 0).all() for c in counters)


def test_upstream_gradients(device):
    """retain_graph, accumulation, a scaled loss and an expanded upstream gradient."""
    logits, targets = draw((2, 3, 8, 8), device)
    criterion = CombinedSegmentationLoss(mode="multilabel", backend="triton")
    x = logits.clone().requires_grad_()
    loss = criterion(x, targets)
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    (loss * 1024.0).backward()
    torch.testing.assert_close(x.grad, once * 1025.0)
    each = DiceLoss(mode="multilabel", reduction="none", backend="triton")
    x = logits.clone().requires_grad_()
    each(x, targets).sum().backward()
    expanded = x.grad.clone()
    x = logits.clone().requires_grad_()
    each(x, targets).backward(torch.ones(2, 3, device=device))
    assert torch.equal(expanded, x.grad)


def test_double_backward_says_so(device):
    """Also where something else requires grad: a penalty must not become a constant."""
    logits, targets = draw((2, 1, 8, 8), device)
    x = logits.requires_grad_()
    loss = CombinedSegmentationLoss(backend="triton")(x, targets)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    for total in (gradient.sum(), loss + 100 * gradient.square().sum()):
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            total.backward(retain_graph=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hooks_on_saved_tensors_may_move_them(layout, device):
    """Offloading gives back copies that lie otherwise."""
    logits, targets = draw((3, 4, 16, 32), device)
    logits = LAYOUTS[layout](logits)
    criterion = CombinedSegmentationLoss(mode="multilabel", backend="triton")
    expected = run(criterion, logits, targets, dloss=torch.tensor(1.0))
    x = logits.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda v: v.contiguous().clone(), lambda v: v):
        loss = criterion(x, targets)
    loss.backward()
    torch.testing.assert_close(x.grad, expected.dlogits)


def test_weights_with_gaps(device):
    logits, targets = draw((3, 4, 6, 7), device)
    criterion = CombinedSegmentationLoss(
        mode="multilabel", class_weights=[1.0, 5.0, 0.0, 2.0], bce_pos_weight=[1.0, 2.0, 3.0, 4.0]
    ).to(device)
    criterion.backend = "triton"
    expected = criterion(logits, targets)
    for name in ("class_weights", "pos_weight"):
        weights = getattr(criterion, name)
        setattr(criterion, name, torch.stack([weights, -weights], 1).flatten()[::2])
    assert torch.equal(criterion(logits, targets), expected)
    criterion.class_weights = criterion.class_weights.clone().requires_grad_()
    with pytest.raises(ValueError, match="class_weights: expected a tensor that does not require"):
        criterion(logits, targets)


@pytest.mark.parametrize("x", [-9.5, -12.5, -16.5, 9.5, 16.5])
def test_weighted_bce_keeps_its_relative_accuracy(x, device):
    """Confident background under pos_weight: (1 - t) - w (1 - p) would cancel."""
    logits = torch.linspace(x - 0.5, x + 0.5, 64, device=device).reshape(1, 1, 8, 8)
    targets = torch.full_like(logits, float(x > 0))
    for smoothing in (0.0, 0.1):
        check_against_float64(
            lambda e=smoothing, **k: BCELoss(pos_weight=2.0, label_smoothing=e, **k),
            logits,
            targets,
        )


def test_specs_beyond_a_record_say_so(device):
    from dataclasses import replace

    logits, targets = draw((2, 1, 4, 4), device)
    criterion = CombinedSegmentationLoss(backend="triton", iou_weight=0.1, tversky_weight=0.1)
    for extra in ({"points": criterion.spec.points * 2}, {"regions": criterion.spec.regions * 2}):
        criterion.spec = replace(criterion.spec, **extra)
        with pytest.raises(ValueError, match="the kernels' records hold"):
            criterion(logits, targets)


def test_no_grad_and_inference_mode(device):
    logits, targets = draw((2, 1, 8, 8), device)
    criterion = CombinedSegmentationLoss(backend="triton")
    expected = criterion(logits, targets)
    with torch.no_grad():
        assert torch.equal(criterion(logits, targets), expected)
    with torch.inference_mode():
        assert torch.equal(criterion(logits, targets), expected)


def test_same_inputs_same_bits(device):
    logits, targets = draw((2, 1, 3000), device)
    criterion = CombinedSegmentationLoss(iou_weight=0.1, backend="triton")
    first = run(criterion, logits, targets)
    for _ in range(5):
        assert all(
            torch.equal(a, b) for a, b in zip(first, run(criterion, logits, targets), strict=True)
        )


def test_stats_out_is_written_in_place(device):
    logits, targets = draw((2, 1, 8, 8), device)
    criterion = CombinedSegmentationLoss(backend="triton")
    ring = torch.full((3, criterion.stats_size()), -7.0, device=device)
    _, stats = criterion(logits, targets, return_stats=True, stats_out=ring[1])
    _, expected = criterion(logits, targets, return_stats=True)
    assert torch.equal(ring[1], expected.tensor) and stats.tensor.data_ptr() == ring[1].data_ptr()
    assert (ring[0] == -7).all() and (ring[2] == -7).all()


@pytest.mark.parametrize("layout", ["channels_last", "cropped", "transposed"])
@pytest.mark.parametrize("moved", ["logits", "targets", "valid"])
def test_operators_pass_opcheck(moved, layout, device):
    logits, targets = draw((2, 3, 8, 8), device)
    valid = torch.rand(2, 1, 8, 8, device=device) < 0.7
    if moved == "logits":
        logits = LAYOUTS[layout](logits)
    elif moved == "targets":
        targets = LAYOUTS[layout](targets)
    else:
        valid = LAYOUTS[layout](valid)
    spec = CombinedSegmentationLoss(mode="multilabel").spec
    x = logits.detach().requires_grad_()
    torch.library.opcheck(ops.loss_forward, (x, targets, valid, None, None, spec.key))
    loss, _, table = ops.loss_forward(logits, targets, valid, None, None, spec.key)
    inputs = (torch.ones_like(loss), table, logits, targets, valid, None, None, spec.key)
    torch.library.opcheck(ops.loss_backward, inputs, test_utils=("test_schema", "test_faketensor"))


def test_operators_of_other_shapes_pass_opcheck(device):
    logits, targets = draw((2, 3, 8, 8), device)
    for criterion in (
        DiceLoss(mode="multilabel", batch=True, reduction="none"),
        BCELoss(mode="multilabel", reduction="none"),
    ):
        x = logits.clone().requires_grad_()
        torch.library.opcheck(ops.loss_forward, (x, targets, None, None, None, criterion.spec.key))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiled_for_dynamic_shapes_with_weights(backend, device):
    torch._dynamo.reset()
    criterion = CombinedSegmentationLoss(
        mode="multilabel", backend=backend, class_weights=[1.0, 2.0, 3.0], bce_pos_weight=[2.0] * 3
    ).to(device)
    step = torch.compile(criterion, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (8, 12):
        logits, targets = draw((2, 3, size, size), device)
        torch.testing.assert_close(step(logits, targets), criterion(logits, targets))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_calls_raise_the_alarm_and_check_stats_out(device):
    torch._dynamo.reset()
    logits, targets = draw((2, 1, 8, 8), device)
    criterion = DiceLoss(backend="triton")
    step = torch.compile(criterion, backend="aot_eager")
    step(logits, targets * 255 + 2)
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="earlier call"):
        step(logits, targets)
    with pytest.raises(Exception, match="stats_out: expected a contiguous float32"):
        step(logits, targets, stats_out=torch.zeros(4, criterion.stats_size(), device=device))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiled_fullgraph_equals_eager(backend, device):
    torch._dynamo.reset()
    logits, targets = draw((2, 3, 8, 8), device)
    valid = torch.tensor([True, False], device=device)
    criterion = CombinedSegmentationLoss(mode="multilabel", backend=backend)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x, t, v):
        loss, stats = criterion(x * 2, t, v, return_stats=True)
        return loss * 3, stats.pred_mean

    x = logits.clone().requires_grad_()
    loss, pred_mean = step(x, targets, valid)
    loss.backward()
    y = logits.clone().requires_grad_()
    eager, stats = criterion(y * 2, targets, valid, return_stats=True)
    (eager * 3).backward()
    torch.testing.assert_close(loss, eager * 3)
    torch.testing.assert_close(pred_mean, stats.pred_mean)
    torch.testing.assert_close(x.grad, y.grad)


def test_backend_choice(device):
    logits, targets = draw((2, 1, 4, 4), torch.device("cpu"))
    assert not backends.takes_triton("auto", logits)  # CPU tensors: plain PyTorch
    with pytest.raises(TypeError, match="float64"):
        CombinedSegmentationLoss(backend="triton")(logits.double(), targets)
    if device.type == "cuda":
        assert backends.takes_triton("auto", logits.cuda())
        with pytest.raises(RuntimeError, match="not on cpu"):
            CombinedSegmentationLoss(backend="triton")(logits, targets)


def test_an_old_triton_is_named(monkeypatch):
    import triton

    monkeypatch.setattr(triton, "__version__", "3.1.0")
    assert "3.1.0 is older than 3.4" in backends.find_trouble("cuda", 0)


def test_plans_are_kept_and_bounded(monkeypatch, device):
    monkeypatch.setattr(plans, "MAX_PLANS", 3)
    plans.PLANS.clear()
    criterion = DiceLoss(backend="triton")
    for width in (4, 5, 6, 7):
        logits, targets = draw((1, 1, width, 4), device)
        criterion(logits, targets)
        criterion(logits.clone(), targets.clone())
    assert len(plans.PLANS) <= 3
    assert copy.deepcopy(criterion).spec == criterion.spec
