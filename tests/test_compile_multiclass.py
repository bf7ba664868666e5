"""The multiclass kernels build for GPUs that are not there, and fit into registers."""

import re
import subprocess
from functools import partial
from pathlib import Path

import pytest
import triton
from test_compile_only import BYTES, REGIONS, TARGETS, build_both

from fastseg_losses.kernels import launch, multiclass_plan

pytestmark = pytest.mark.compile_only

N, C, P = 4, 6, 1 << 14


def make_plan(logits, targets, C, *, ptx, points=("ce",), regions=("dice",), **options):
    """A plan of 4 samples of C classes; options replace its layout's and formula's fields."""
    strides = options.pop("strides", (C * P, P, 1))
    soft = "float" in targets
    layout = launch.Layout(
        *(N, C, P, strides, strides if soft else (P, 0, 1), strides),
        valid=options.pop("valid", (0, 0)),
        logits_bytes=BYTES[logits],
        targets_bytes=BYTES[targets],
        targets_kind="soft" if soft else "ids",
        valid_kind=options.pop("valid_kind", "none"),
        pos_weight_stride=0,
    )
    formula = launch.Formula(
        points=points,
        point_weights=(0.4, 0.2)[: len(points)],
        region_weights=(0.4, 0.1)[: len(regions)],
        region_params=tuple(REGIONS[name] for name in regions),
        logs=(False, True)[: len(regions)],
        powers=(False, True)[: len(regions)],
        term_params=(0.75, 0.25, 1.5, 0.1),
        **{
            "reduction": "mean",
            "batch": False,
            "absent": "keep",
            "ignore_index": None,
            "softmax": True,
            "balanced": (False,) * len(points),
            "smoothed": (False,) * len(points),
            **options,
        },
    )
    return multiclass_plan.ClassPlan(layout, formula, launch.Device(132, ptx))


build_both = partial(build_both, vector="vector_ptr")


@pytest.mark.parametrize(
    ("logits", "targets", "C"), [("float32", "int64", 5), ("bfloat16", "uint8", 41)]
)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_builds(target, logits, targets, C):
    plan = make_plan(logits, targets, C, ptx=target.startswith("sm"))
    build_both(plan, logits, targets, TARGETS[target])


VARIANTS = {
    "masked-weighted-smoothed": {
        **{"valid_kind": "pixel", "valid": (P, 1), "ignore_index": 255, "weights": True},
        **{"points": ("ce", "focal"), "smoothed": (True, False), "balanced": (False, True)},
    },
    "sample-none-regions": {
        **{"valid_kind": "sample", "valid": (1, 0), "reduction": "none", "first_class": 1},
        **{"points": (), "regions": ("dice", "tversky")},
    },
    "batch-sum-skip-focal": {
        **{"batch": True, "reduction": "sum", "absent": "skip", "points": ("focal_squared",)},
    },
    "region-sums": {"points": (), "regions": (), "reduction": "sums"},
    "soft": {"targets": "float32", "points": ("ce", "focal_squared")},
    "against-the-rest": {"points": ("bce", "focal_squared"), "softmax": False},
    "many-classes": {"C": 41, "valid_kind": "sample", "valid": (1, 0), "ignore_index": 255},
    "many-classes-soft": {"C": 41, "targets": "float16", "points": ("ce", "focal")},
    "many-classes-against-the-rest": {"C": 41, "points": ("weighted_bce",), "softmax": False},
    "more-classes-than-the-dtype-has": {"C": 300},
    "channels-last": {"strides": (C * P, 1, C)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_every_variant_builds(target, variant):
    options = dict(VARIANTS[variant])
    targets = options.pop("targets", "uint8")
    weights = options.pop("weights", False)
    classes = options.pop("C", C)
    plan = make_plan("bfloat16", targets, classes, ptx=target.startswith("sm"), **options)
    build_both(plan, "bfloat16", targets, TARGETS[target], weights=weights)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_adding_to_a_gradient_builds(target, softmax):
    points = ("ce",) if softmax else ("bce",)
    options = {"ptx": target.startswith("sm"), "softmax": softmax, "points": points}
    plan = make_plan("float32", "uint8", C, **options)
    alone = build_both(plan, "float32", "uint8", TARGETS[target])[1]
    plan.backward_launch = partial(plan.backward_launch, add=True)
    adding = build_both(plan, "float32", "uint8", TARGETS[target])[1]
    assert len(adding.asm["ttgir"].split("tt.load")) > len(alone.asm["ttgir"].split("tt.load"))


def resources(kernel, path: Path) -> tuple[int, int]:
    """Registers a thread and bytes spilled, as ptxas reports them."""
    path.write_text(kernel.asm["ptx"])
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    ptxas = max(folder.glob("ptxas*"))  # the newer one, if there are two
    command = [str(ptxas), "-v", "--gpu-name=sm_90a", str(path), "-o", "/dev/null"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", printed)
    spills = re.search(r"(\d+) bytes spill stores", printed)
    assert registers and spills, printed
    return int(registers[1]), int(spills[1])


@pytest.mark.parametrize(
    ("logits", "targets", "C"),
    [
        ("float32", "int64", 19),
        ("bfloat16", "uint8", 19),
        ("float32", "uint8", 118),
        ("bfloat16", "uint8", 150),
    ],
)
def test_the_benchmarked_cases_fit_into_registers(logits, targets, C, tmp_path):
    """All classes of a pixel, their sums and counts fit into a thread's registers.

    A few words are spilled at 19 classes; at more than 100 up to 80, of some 250: on an H100 still
    faster than more lanes, which spill less (118 classes: 849 us against 964).
    """
    plan = make_plan(logits, targets, C, ptx=True)
    kernels = build_both(plan, logits, targets, TARGETS["sm_90"])
    for kernel, tile in zip(kernels, (plan.tile, plan.gradient_tile), strict=True):
        registers, spilled = resources(kernel, tmp_path / "kernel.ptx")
        assert spilled <= (64 if C == 19 else 320) and registers <= tile.registers
