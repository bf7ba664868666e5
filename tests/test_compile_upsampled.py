"""The kernels of low-resolution logits build for GPUs that are not there and do not spill."""

import re
import subprocess
from pathlib import Path

import pytest
import triton
from test_compile_only import POINTERS, REGIONS, TARGETS, build

from fastseg_losses.kernels import cell_class_plan, cell_mask, cell_plan, cell_tiles, launch
from fastseg_losses.kernels.cells import axis_cells

pytestmark = pytest.mark.compile_only

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def make_layout(C, targets, *, logits="float32", ids=False, low=(64, 64), high=(256, 256), **given):
    N, (h, w), (H, W) = 4, low, high
    y, x = (axis_cells(a, b, "bilinear") for a, b in zip(low, high, strict=True))
    each = cell_tiles.piece_of(y.most, x.most)
    small, large = (C * h * w, h * w, w, 1), (H * W, 0, W, 1) if ids else (C * H * W, H * W, W, 1)
    kind = "soft" if "float" in targets else "unsigned" if targets == "uint8" else "signed"
    return cell_plan.CellLayout(
        *(N, C, y.padded(each[0]), x.padded(each[1]), each, small, large, small),
        valid=given.get("valid", (0, 0, 0)),
        logits_bytes=BYTES[logits],
        targets_align=16 if targets == "uint8" else 1,
        targets_kind="ids" if ids else kind,
        valid_kind=given.get("valid_kind", "none"),
        pos_weight_stride=0,
    )


def make_formula(points, **options):
    return launch.Formula(
        points=points,
        point_weights=(0.4, 0.2)[: len(points)],
        region_weights=(0.4,),
        region_params=(REGIONS["dice"],),
        logs=(False,),
        powers=(False,),
        term_params=(0.75, 0.25, 1.5, 0.1),
        **{
            "reduction": "mean",
            "batch": False,
            "absent": "keep",
            "ignore_index": None,
            "balanced": (False,) * len(points),
            "smoothed": (False,) * len(points),
            **options,
        },
    )


def build_both(plan, logits, targets, target, vector="pos_weight_ptr"):
    shared = {
        **{"table_ptr": "*fp32", "positions_ptr": "*i32", "weights_ptr": "*fp32"},
        **{"logits_ptr": POINTERS[logits], "targets_ptr": POINTERS[targets], vector: None},
        "valid_ptr": "*i1" if plan.layout.valid_kind != "none" else None,
    }
    forward = {
        **shared,
        **dict.fromkeys(("loss_ptr", "stats_ptr", "workspace_ptr"), "*fp32"),
        **dict.fromkeys(("counters_ptr", "alarm_ptr"), "*i32"),
        "class_weights_ptr": None,
    }
    strides = dict.fromkeys(("dloss_stride_k", "dloss_stride_n", "dloss_stride_c"), "i32")
    backward = {**shared, **strides, "dlogits_ptr": POINTERS[logits], "dloss_ptr": "*fp32"}
    backward["exchange_ptr"] = "*fp32"
    return (
        build(plan.forward_launch(), forward, target),
        build(plan.backward_launch(), backward, target),
    )


def plan_of(layout, formula, target):
    make = cell_plan.CellPlan
    if layout.C > 2:
        make = cell_class_plan.CellClassPlan
    return make(layout, formula, launch.Device(132, target.startswith("sm")))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("logits", "targets"), [("bfloat16", "uint8")])
def test_binary_kernels_build(target, logits, targets):
    layout = make_layout(1, targets, logits=logits)
    plan = plan_of(layout, make_formula(("bce", "focal_squared")), target)
    build_both(plan, logits, targets, TARGETS[target])


@pytest.mark.parametrize("high", [(512, 512), (257, 300)], ids=["pieces", "odd"])
def test_other_ratios_build(high):
    layout = make_layout(2, "int64", high=high, valid_kind="pixel", valid=(1 << 17, 512, 1))
    formula = make_formula(("weighted_bce", "focal"), batch=True, ignore_index=255.0)
    build_both(plan_of(layout, formula, "sm_90"), "float32", "int64", TARGETS["sm_90"])


VARIANTS = {
    "ids": ({"ids": True}, {"softmax": True}),
    "smoothed": ({"ids": True}, {"softmax": True, "smoothed": (True,)}),
    "soft": ({}, {"softmax": True}),
    "sigmoid": ({"ids": True}, {"softmax": False}),
}


@pytest.mark.parametrize(
    ("target", "variant"), [*(("sm_90", each) for each in VARIANTS), ("gfx942", "ids")]
)
def test_multiclass_kernels_build(target, variant):
    layout, formula = VARIANTS[variant]
    targets = "uint8" if layout else "float32"
    points = ("ce",) if formula["softmax"] else ("bce",)
    plan = plan_of(
        make_layout(5, targets, logits="bfloat16", high=(128, 128), **layout),
        make_formula(points, **formula),
        target,
    )
    build_both(plan, "bfloat16", targets, TARGETS[target], vector="vector_ptr")


@pytest.mark.parametrize("C", [1, 5])
@pytest.mark.parametrize("target", TARGETS)
def test_masks_build(target, C):
    device = launch.Device(132, target.startswith("sm"))
    plan = cell_mask.MaskPlan(make_layout(C, "uint8", ids=True), device, 0.0)
    pointers = {"mask_ptr": "*u8", "logits_ptr": "*fp32"}
    pointers |= {"positions_ptr": "*i32", "weights_ptr": "*fp32"}
    build(plan.mask_launch(), pointers, TARGETS[target])


def test_the_walks_over_the_classes_keep_to_registers(tmp_path):
    """What waits between pieces may spill; a class may not: it is walked a thousand times."""
    layout = make_layout(150, "int64", ids=True, low=(128, 128), high=(512, 512))
    plan = plan_of(layout, make_formula(("ce",), softmax=True), "sm_90")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    for kernel in build_both(plan, "float32", "int64", TARGETS["sm_90"], vector="vector_ptr"):
        path = tmp_path / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        run = subprocess.run(
            [tools / "cuobjdump", "-sass", path], capture_output=True, text=True, check=True
        )
        lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", run.stdout)
        places = {int(at, 16): text for at, text in lines}
        loops = []
        for at, text in places.items():
            jump = re.search(r"BRA\S* .*?(0x[0-9a-f]+)", text)
            if jump and int(jump[1], 16) < at:
                loops.append((int(jump[1], 16), at))
        inner = [
            (start, end)
            for start, end in loops
            if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops)
        ]
        walks = 0
        for start, end in inner:
            body = [text for at, text in places.items() if start <= at <= end]
            if sum("MUFU.EX2" in text for text in body) < 16:
                continue
            walks += 1
            assert sum("LDL" in text or "STL" in text for text in body) <= 8
        assert walks == 2
