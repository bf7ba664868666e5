"""Every kernel builds for GPUs that are not there: NVIDIA sm_80, sm_90, sm_100; AMD gfx942."""

import re

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastseg_losses.kernels import early_plan, launch, single_plan
from fastseg_losses.kernels.generalized import generalized_launch
from fastseg_losses.kernels.tiles import SingleTile
from fastseg_losses.spec import RegionTerm

pytestmark = pytest.mark.compile_only

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    **{"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "float64": "*fp64"},
    **{"uint8": "*u8", "int8": "*i8", "bool": "*i1", "int32": "*i32", "int64": "*i64"},
}
BYTES = {
    **{"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8},
    **{"uint8": 1, "int8": 1, "bool": 1, "int32": 4, "int64": 8},
}
REGIONS = {
    "dice": RegionTerm("dice", 1.0, 0.5, 0.5, 0.5).numbers,
    "tversky": RegionTerm("tversky", 1.0, 0.3, 0.7, 1.0, 0.75).numbers,
}


def make_plan(logits, targets, *, ptx, points=("bce", "focal_squared"), **options):
    """A plan of 4 samples of 2 classes; options replace its layout's and formula's fields."""
    N, C, P = 4, 2, 1 << 14
    strides = options.pop("strides", (C * P, P, 1))
    layout = launch.Layout(
        *(N, C, P, strides, strides, strides),
        valid=options.pop("valid", (0, 0)),
        logits_bytes=BYTES[logits],
        targets_bytes=BYTES[targets],
        targets_kind="soft"
        if "float" in targets
        else "signed"
        if "int64" in targets
        else "unsigned",
        valid_kind=options.pop("valid_kind", "none"),
        pos_weight_stride=0,
        packed=logits == "bfloat16" and targets == "uint8",
    )
    formula = launch.Formula(
        points=points,
        point_weights=(0.4, 0.2)[: len(points)],
        region_weights=(0.4, 0.1),
        region_params=tuple(REGIONS.values()),
        logs=(False, True),
        powers=(False, True),
        term_params=(0.75, 0.25, 1.5, 0.1),
        **{
            "reduction": "mean",
            "batch": False,
            "absent": "keep",
            "ignore_index": None,
            **options,
        },
    )
    return launch.Plan(layout, formula, launch.Device(132, ptx))


def type_of(value):
    if isinstance(value, tuple):
        return tuple(type_of(v) for v in value)
    return "fp32" if isinstance(value, float) else "i32"


def build(plan_launch, pointers, target, source_of=ASTSource):
    """Compile a launch as the device would, without one."""
    kernel = plan_launch.kernel
    numbers = iter(plan_launch.scalars)
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in plan_launch.constexprs or (name in pointers and pointers[name] is None):
            signature[name] = "constexpr"
            constants[(i,)] = plan_launch.constexprs.get(name)
        elif name in pointers:
            signature[name] = pointers[name]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = type_of(next(numbers))
    assert next(numbers, None) is None, "more numbers than the kernel takes"
    source = source_of(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=plan_launch.options)


def build_both(plan, logits, targets, target, *, weights=False, vector="pos_weight_ptr"):
    shared = {
        "table_ptr": "*fp32",
        "logits_ptr": POINTERS[logits],
        "targets_ptr": POINTERS[targets],
        "valid_ptr": "*i1" if plan.layout.valid_kind != "none" else None,
        vector: "*fp32" if weights else None,
    }
    forward = {
        **shared,
        **dict.fromkeys(("loss_ptr", "stats_ptr", "workspace_ptr"), "*fp32"),
        **dict.fromkeys(("counters_ptr", "alarm_ptr"), "*i32"),
        "class_weights_ptr": "*fp32" if weights else None,
        **dict.fromkeys(("dlogits_ptr", "assumed_ptr")),
    }
    strides = dict.fromkeys(("dloss_stride_k", "dloss_stride_n", "dloss_stride_c"), "i32")
    backward = {**shared, **strides, "dlogits_ptr": POINTERS[logits], "dloss_ptr": "*fp32"}
    kernels = (
        build(plan.forward_launch(), forward, target),
        build(plan.backward_launch(), backward, target),
    )
    binary = "cubin" if target.backend == "cuda" else "hsaco"
    for kernel in kernels:
        assert len(kernel.asm[binary]) > 1000
    if target.backend == "cuda":
        text = "".join(kernel.asm["ptx"] for kernel in kernels)
        assert ("rcp.approx.ftz" in text) == plan.device.ptx
    return kernels


@pytest.mark.parametrize("targets", ["float32", "uint8"])
@pytest.mark.parametrize("logits", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_dtype_builds(target, logits, targets):
    plan = make_plan(logits, targets, ptx=target.startswith("sm"))
    build_both(plan, logits, targets, TARGETS[target])


VARIANTS = {
    "valid-samples": {"valid_kind": "sample", "valid": (1, 0)},
    "valid-pixels": {"valid_kind": "pixel", "valid": (1 << 14, 1)},
    "ignore-none-weights": {"ignore_index": 255.0, "reduction": "none", "weights": True},
    "batch-sum-skip": {"batch": True, "reduction": "sum", "absent": "skip"},
    "region-sums": {"points": (), "reduction": "sums"},
    "weighted-focal": {"points": ("weighted_bce", "focal"), "weights": True},
    "channels-last": {"strides": (1 << 15, 1, 2)},
    "bool-targets": {"targets": "bool"},
    "int64-targets": {"targets": "int64"},
    "float64-targets": {"targets": "float64"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_every_variant_builds(target, variant):
    options = dict(VARIANTS[variant])
    targets = options.pop("targets", "uint8")
    weights = options.pop("weights", False)
    plan = make_plan("bfloat16", targets, ptx=target.startswith("sm"), **options)
    build_both(plan, "bfloat16", targets, TARGETS[target], weights=weights)


@pytest.mark.parametrize("ignore", [None, 255.0], ids=["all-count", "ignore"])
@pytest.mark.parametrize("points", [("bce",), ("focal",), ("bce", "focal_squared")], ids=str)
@pytest.mark.parametrize("targets", ["float32", "uint8"])
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_forward_launch_that_writes_the_gradient_builds(target, targets, points, ignore):
    both = make_plan("float32", targets, ptx=target.startswith("sm"), points=points)
    formula = both.formula._replace(
        **dict.fromkeys(("region_weights", "region_params", "logs", "powers"), ()),
        reduction="mean" if ignore is None else "sum",
        ignore_index=ignore,
    )
    plan = early_plan.plan_points(both.layout, formula, both.device)
    pointers = {
        **dict.fromkeys(("loss_ptr", "stats_ptr", "table_ptr", "workspace_ptr"), "*fp32"),
        **dict.fromkeys(("counters_ptr", "alarm_ptr"), "*i32"),
        **dict.fromkeys(("dlogits_ptr", "logits_ptr", "assumed_ptr"), "*fp32"),
        "targets_ptr": POINTERS[targets],
        **dict.fromkeys(("valid_ptr", "class_weights_ptr", "pos_weight_ptr")),
    }
    kernel = build(plan.forward_launch(), pointers, TARGETS[target])
    if target == "sm_90":
        text = kernel.asm["ptx"]
        assert "st.global.cs.v4" in text and "ld.local" not in text
        # Of a pixel once, for its sums and its slope: a thread has 8 in a full tile and 8 in an odd
        # one. One more for a power that is no square, and one for the largest probability, in each
        # of the two ways to finish.
        assert text.count("ex2.approx") == 16 * (2 if points == ("focal",) else 1) + 2


SINGLE_TILES = {
    "large": SingleTile(256, 1, 4, 8, 3, 1, 2),
    "small team": SingleTile(34, 15, 4, 4, 3, 1, 4),
    "smallest team": SingleTile(8, 64, 4, 4, 3, 1, 4),
    "alone": SingleTile(132, 1, 9, 8, 3, 1, 1),
}


@pytest.mark.parametrize("tile", SINGLE_TILES)
@pytest.mark.parametrize("P", [1 << 20, 1_000_000], ids=["even", "tails"])
@pytest.mark.parametrize("targets", ["float32", "int32", "int8", "uint8", "bool"])
def test_the_single_launch_builds(targets, P, tile):
    """Written in Gluon, whose names change: it must build with the Triton at hand."""
    from triton.experimental.gluon._runtime import GluonASTSource

    N, C = 32, 1
    strides = (C * P, P, 1)
    kind = {"float32": "soft", "uint8": "unsigned", "bool": "unsigned"}.get(targets, "signed")
    layout = launch.Layout(
        *(N, C, P, strides, strides, strides, (0, 0), 4, BYTES[targets], kind, "none", 0)
    )
    formula = make_plan("float32", targets, ptx=True).formula
    device, tile = launch.Device(132, True, hopper=True), SINGLE_TILES[tile]
    plan = single_plan.SinglePlan(layout, formula, device, tile)
    pointers = {
        **dict.fromkeys(("loss_ptr", "stats_ptr", "table_ptr", "workspace_ptr"), "*fp32"),
        **dict.fromkeys(("counters_ptr", "alarm_ptr"), "*i32"),
        **dict.fromkeys(("dlogits_ptr", "logits_ptr", "assumed_ptr"), "*fp32"),
        **{"targets_ptr": POINTERS[targets], "pos_weight_ptr": None},
    }
    kernel = build(plan.forward_launch(), pointers, TARGETS["sm_90"], GluonASTSource)
    copies = [
        line.split()[0]
        for line in kernel.asm["ptx"].splitlines()
        if ".shared.global" in line and "cp.async" in line
    ]
    wide = copies.count("cp.async.cg.shared.global")  # 16 bytes a thread
    assert wide == (len(copies) if BYTES[targets] == 4 else len(copies) // 2) > 0
    assert tile.programs * (kernel.metadata.shared + 1024) <= 227 << 10
    registers = int(re.search(r"\.maxnreg (\d+)", kernel.asm["ptx"])[1])
    assert tile.programs * 32 * tile.num_warps * registers <= 1 << 16
    settle = dict.fromkeys(("dlogits_ptr", "assumed_ptr", "dloss_ptr", "used_ptr"), "*fp32")
    build(plan.settle_launch(), settle, TARGETS["sm_90"])


def test_the_portable_twin_builds_on_nvidia_too():
    plan = make_plan("float32", "float32", ptx=False)
    build_both(plan, "float32", "float32", TARGETS["sm_90"])


@pytest.mark.parametrize("logits", ["float32", "bfloat16"])
def test_lanes_that_add_up_weighted_records_agree(logits):
    """None fuses a product of its own with its partner's sum: their last bits would differ."""
    plan = make_plan(logits, "uint8", ptx=True)
    kernel, _ = build_both(plan, logits, "uint8", TARGETS["sm_90"], weights=True)
    lines = kernel.asm["ptx"].splitlines()
    given = {line.split()[1].rstrip(",|") for line in lines if "shfl.sync" in line}
    assert len(given) > 50, "no sums over lanes were found"
    for line in lines:
        if "fma.rn.f32" in line:
            assert line.split()[-1].rstrip(";") not in given, line


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("weights", ["square", "simple", "uniform"])
@pytest.mark.parametrize("target", TARGETS)
def test_generalised_dice_finish_builds(target, weights, batch):
    finish = generalized_launch(32, 19, 1, (1e-5, 1e-5), 1.0, weights, batch, not batch)
    pointers = dict.fromkeys(("loss_ptr", "dsums_ptr", "sums_ptr"), "*fp32")
    kernel = build(finish, pointers, TARGETS[target])
    assert kernel.metadata.shared < 48 << 10
    # a lane that fuses a product where its partner does not has another sum: see generalized_launch
    if TARGETS[target].backend == "cuda":
        assert "fma.rn" not in kernel.asm["ptx"]
