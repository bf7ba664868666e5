"""``train.py pseudo-label``: fills the rows that nobody annotated with a net's masks.

Nothing here imports torch at the top: ``--help`` has to answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastseg_losses.training.command_line import Parser, as_typed
from fastseg_losses.training.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_CANNOT_WRITE,
    EXIT_INTERRUPTED,
    EXIT_OK,
)
from fastseg_losses.training.extras import missing_extras
from fastseg_losses.training.settings import MAX_PIXELS

if TYPE_CHECKING:
    from fastseg_losses.training.predictor import Predictor

COMMAND = "pseudo-label"
PREDICTORS = ("checkpoint", "sam2")

# What SAM's own automatic mask generation takes is 32; each doubling takes four times as long.
POINTS_PER_SIDE = 16
# A segment that covers more of the image than this is taken for ground.
MAX_AREA = 0.5

EPILOG = f"""\
The output has every row and column of the input. Rows with has_segmentation false get a mask, the
columns mask_source, mask_confidence and confidence say where it comes from and how sure it is, and
has_segmentation stays false: train.py uses such rows only with --pseudo-weight.

exit codes: {EXIT_OK} written; {EXIT_BAD_INPUT} wrong option, or an input that cannot be read;
{EXIT_CANNOT_WRITE} the output cannot be written (nothing is left of it);
{EXIT_INTERRUPTED} Ctrl-C (nothing is written).
"""


def build_parser() -> Parser:
    """The command line of ``train.py pseudo-label``."""
    parser = Parser(
        prog=f"train.py {COMMAND}",
        description="Fill the rows of an index that nobody annotated with a net's masks.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", required=True, metavar="FILE", help="parquet index")
    add(
        "--out",
        required=True,
        metavar="FILE",
        help="the index to write, which must not exist yet; beside --data if that holds paths",
    )
    add(
        "--predictor",
        choices=PREDICTORS,
        default="checkpoint",
        help="who predicts: a net that train.py trained, or SAM 2 (default: checkpoint)",
    )
    add("--checkpoint", metavar="FILE", help="best.pt or last.pt, with --predictor checkpoint")
    add(
        "--model-path",
        metavar="DIR",
        help="with --predictor sam2: a local folder in the form of Hugging Face transformers "
        "(config.json, model.safetensors); nothing is downloaded",
    )
    add(
        "--points-per-side",
        type=int,
        metavar="N",
        help="with --predictor sam2 and an index without a column 'box': prompts are a grid of "
        f"N x N points (default: {POINTS_PER_SIDE})",
    )
    add(
        "--max-area",
        type=float,
        metavar="N",
        help="with a grid of points: a segment that covers more of the image than this share is "
        f"ground and not an object (default: {MAX_AREA})",
    )
    add(
        "--image-bits",
        type=int,
        metavar="N",
        help="with --predictor sam2: bits that 16-bit grey images use, 8 to 16 (default: 16)",
    )
    add(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto (CUDA where there is one), cpu, cuda, cuda:1 (default: auto)",
    )
    add(
        "--allow-outside",
        action="store_true",
        help="let paths in the index point outside the index's own folder",
    )
    add(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="leave out images of more pixels (width times height) (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write an index with pseudo-masks and return the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    fields = set(vars(options))
    try:
        _check(options)
    except ValueError as error:
        parser.error(as_typed(str(error), fields))
    missing = missing_extras()
    if missing is not None:
        parser.error(missing)

    from fastseg_losses.training.index import IndexTable
    from fastseg_losses.training.pseudo_writer import PseudoWriter
    from fastseg_losses.training.run_folder import WriteError

    try:
        index = IndexTable(
            options.data, allow_outside=options.allow_outside, max_pixels=options.max_pixels
        )
        writer = PseudoWriter(index, Path(options.out))  # before the net is loaded
        summary = writer.write(_make_predictor(options))
    except (ValueError, TypeError, OSError) as error:
        text = " ".join(as_typed(str(error), fields).split())
        print(f"{parser.prog}: error: {text}", file=sys.stderr)
        return EXIT_CANNOT_WRITE if isinstance(error, WriteError) else EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; nothing is written", file=sys.stderr)
        return EXIT_INTERRUPTED
    for line in summary.warnings():
        print(f"{parser.prog}: warning: {line}", file=sys.stderr)
    print("\n".join(summary.lines()))
    return EXIT_OK


def _check(options: argparse.Namespace) -> None:
    """Say which options do not fit together, or are out of range, before anything is read."""
    needed, sam2 = {"checkpoint": "checkpoint", "sam2": "model_path"}, options.predictor == "sam2"
    for predictor, name in needed.items():
        value = getattr(options, name)
        if predictor == options.predictor and value is None:
            raise ValueError(f"{name}: expected beside --predictor {predictor}, got none")
        if predictor != options.predictor and value is not None:
            raise ValueError(f"{name}: expected --predictor {predictor} beside it, got {value!r}")
    ranges = (
        ("points_per_side", 1, 256, "a whole number from 1 to 256"),
        ("max_area", 0, 1, "a number from 0 to 1"),
        ("image_bits", 8, 16, "a whole number from 8 to 16"),
    )
    if options.max_pixels < 1:
        raise ValueError(f"max_pixels: expected at least 1, got {options.max_pixels}")
    for name, least, most, expected in ranges:
        value = getattr(options, name)
        if value is not None and not sam2:
            raise ValueError(f"{name}: expected --predictor sam2 beside it, got {value}")
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name}: expected {expected}, got {value}")


def _make_predictor(options: argparse.Namespace) -> Predictor:
    from fastseg_losses.training.device import pick_device
    from fastseg_losses.training.distributed import World

    device = pick_device(options.device, World())
    if options.predictor == "checkpoint":
        from fastseg_losses.training.checkpoint_predictor import CheckpointPredictor

        return CheckpointPredictor(options.checkpoint, device=device)
    from fastseg_losses.training.sam2_predictor import Sam2Predictor

    return Sam2Predictor(
        options.model_path,
        device=device,
        points_per_side=options.points_per_side or POINTS_PER_SIDE,
        max_area=MAX_AREA if options.max_area is None else options.max_area,
        image_bits=options.image_bits or 16,
    )
