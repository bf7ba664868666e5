"""Changes kernels/terms.py, one operator, constant or comparison at a time, and runs its tests.

`python tests/mutate_terms.py [--only NAME] [--list]`: what no test notices is listed at the end.
mutmut skips functions that are decorated, as every kernel is; and a jit function reads its own
source, so each mutant is a file of its own, in a copy of the package. The kernels are interpreted.
A mutant's process is forked from one that has imported torch and Triton: half a second in place of
five.
"""

import argparse
import ast
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("fastseg_losses", "kernels", "tests", "pyproject.toml")
SWAPS: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
}
CALLS = {"maximum": "minimum", "minimum": "maximum"}

LOSSES, VARIANTS, CLASSES = "test_ops.py::", "test_variants.py::", "test_ops_multiclass.py::"
BOUNDS = "test_bounds.py::"


def losses(*rows: str) -> list[str]:
    return [rf"{LOSSES}test_every_loss_against_float64\[{row}-dtype0\]" for row in rows]


def variants(*names: str) -> list[str]:
    return [rf"{VARIANTS}test_kernels\[binary-None-{name}-dtype0-True\]" for name in names]


SOFT = rf"{LOSSES}test_every_target_dtype\[soft\]"
ODD = rf"{LOSSES}test_(nonfinite_logits_show\[combined|invalid_pixels)"
SATURATED = rf"{LOSSES}test_saturated_logits_are_finite\[(0.5--?10000.0|2.0--?80.0)"
CONFIDENT = rf"{LOSSES}test_confident_pixels"
PIXEL = [*losses("combined-all", "focal", "focal-gamma0.5"), SOFT, CONFIDENT, SATURATED, ODD]
FOCAL = [*losses("focal", "focal-gamma5", "focal-gamma0.5", "focal-gamma0"), SOFT, SATURATED]
MISSED = [BOUNDS, *variants("likelihood", "likelihood-0.5", "margin", "margin-hard"), SATURATED]
REGIONS = [*losses("dice", "combined-all"), SOFT, BOUNDS]
SOFTMAX = [
    BOUNDS,
    rf"{CLASSES}test_every_loss_against_float64\[(ce|ce-smoothed|focal.*)-dtype0",
    rf"{CLASSES}test_every_loss_with_soft_targets\[(ce|ce-smoothed|focal.*)\]",
    rf"{CLASSES}test_confident_pixels",
    rf"{CLASSES}test_saturated_logits\[(10000.0|80.0)",
    rf"{CLASSES}test_classes_that_are_ruled_out",
]
# The tests of each function, in the order in which they run: the likeliest to notice first.
TESTS = {
    "sigmoid_pixel": PIXEL,
    "identity_pixel": variants("identity", "identity-minimum"),
    "pixel_of": PIXEL + variants("identity"),
    "least": variants("minimum", "log", "identity-minimum"),
    "squared_mass": variants("squared", "squared-hard", "sums"),
    "squared_target": variants("squared", "squared-hard", "sums"),
    "bce": [*losses("bce"), SOFT, CONFIDENT, ODD],
    "weighted_bce": [*losses("bce-weighted-smoothed"), rf"{LOSSES}test_weighted_bce", ODD]
    + [rf"{LOSSES}test_reductions_weights_and_masks\[bce-mean"],
    "focal_of_miss": FOCAL + MISSED,
    "focal": FOCAL,
    "focal_squared": FOCAL,
    "actual": [BOUNDS],
    "hit": [BOUNDS],
    "likelihood_miss": MISSED,
    "margin_miss": MISSED,
    "focal_likelihood": MISSED,
    "focal_likelihood_squared": MISSED,
    "focal_margin": MISSED,
    "focal_margin_squared": MISSED,
    "cross_entropy": SOFTMAX,
    "softmax_focal": SOFTMAX,
    "softmax_focal_squared": SOFTMAX,
}


class Mutant(NamedTuple):
    function: str
    line: int  # of terms.py
    change: str
    source: str  # of the whole module


class Only:
    """A pytest plugin: the tests that match, in the patterns' order."""

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = patterns

    def pytest_collection_modifyitems(self, items: list) -> None:
        found = [i for p in self.patterns for i in items if re.search(p, i.nodeid)]
        items[:] = list(dict.fromkeys(found))


def changes_of(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node may become, each with its name."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield "op", ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in SWAPS:
        yield "op", ast.AugAssign(node.target, SWAPS[type(node.op)](), node.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", node.operand
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield "compare", ast.Compare(node.left, [SWAPS[type(node.ops[0])]()], node.comparators)
        if isinstance(node.ops[0], (ast.Gt, ast.Lt)):
            other = ast.Lt() if isinstance(node.ops[0], ast.Gt) else ast.Gt()
            yield "compare", ast.Compare(node.left, [other], node.comparators)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "flag", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield "constant", ast.Constant(node.value + 1.0)
    elif isinstance(node, ast.Attribute) and node.attr in CALLS:
        yield "call", ast.Attribute(node.value, CALLS[node.attr], node.ctx)


class Replacing(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def mutants(source: str) -> Iterator[Mutant]:
    tree = ast.parse(source)
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for index, node in enumerate(ast.walk(ast.Module(function.body, []))):
            for kind, change in changes_of(node):
                copied = deepcopy(tree)
                twin = next(f for f in copied.body if getattr(f, "name", "") == function.name)
                old = list(ast.walk(ast.Module(twin.body, [])))[index]
                Replacing(old, change).visit(twin)
                text = f"{kind}: {ast.unparse(node)}  ->  {ast.unparse(change)}"
                whole = ast.unparse(ast.fix_missing_locations(copied))
                yield Mutant(function.name, getattr(node, "lineno", 0), text, whole)


def survives(mutant: Mutant, tree: Path, seconds: int) -> bool:
    """Whether the tests pass with the mutant in the tree; too long is a failure like any other."""
    (tree / "kernels" / "terms.py").write_text(mutant.source)
    for compiled in (tree / "kernels").glob("__pycache__/terms.*"):
        compiled.unlink()  # of another mutant, which may have the same second and size
    child = os.fork()
    if child == 0:
        os._exit(run_tests(tree, TESTS.get(mutant.function, REGIONS), seconds))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def run_tests(tree: Path, patterns: list[str], seconds: int) -> int:
    import pytest

    signal.alarm(seconds)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    files = {name.rstrip(":") for name in (LOSSES, VARIANTS, CLASSES, BOUNDS)}
    named = [f"tests/{file}" for file in sorted(files) if any(p.startswith(file) for p in patterns)]
    options = ["-x", "-q", "-p", "no:cacheprovider"]
    return int(pytest.main([*options, *named], plugins=[Only(patterns)]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="functions whose name has this in it")
    parser.add_argument("--part", default="1/1", help="K/N: every Nth mutant, from the Kth")
    parser.add_argument("--seconds", type=int, default=240, help="that a mutant's tests may take")
    parser.add_argument("--list", action="store_true", help="list the mutants, run nothing")
    options = parser.parse_args()
    source = (ROOT / "kernels" / "terms.py").read_text(encoding="utf-8")
    part, parts = map(int, options.part.split("/"))
    chosen = [m for m in mutants(source) if options.only in m.function][part - 1 :: parts]
    if options.list:
        print(*(f"{m.function}:{m.line} {m.change}" for m in chosen), f"{len(chosen)}", sep="\n")
        return 0
    os.environ.update(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    import pytest  # noqa: F401
    import torch._dynamo  # noqa: F401
    import triton.runtime.interpreter  # noqa: F401

    survivors, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for entry in COPIED:
            copy = shutil.copytree if (ROOT / entry).is_dir() else shutil.copy
            copy(ROOT / entry, tree / entry)
        # Tests that fail anyway would notice everything. Of several parts, one looks.
        once = {tuple(TESTS.get(m.function, REGIONS)): m.function for m in chosen if part == 1}
        for function in once.values():
            if not survives(Mutant(function, 0, "nothing", source), tree, options.seconds):
                print(f"the tests of {function} fail without a change")
                return 2
        for number, mutant in enumerate(chosen, 1):
            alive = survives(mutant, tree, options.seconds)
            survivors += [mutant] if alive else []
            word = "SURVIVES" if alive else "noticed "
            print(f"{number:3} {word} {mutant.function}:{mutant.line} {mutant.change}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(chosen)} mutants, {len(survivors)} survive, {seconds:.0f} s")
    print(*(f"  {m.function}:{m.line} {m.change}" for m in survivors), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
