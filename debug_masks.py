"""Says whether a data set's masks can teach a net anything: python debug_masks.py FILE."""

import sys
from collections.abc import Sequence

from fastseg_losses.training.command_line import Parser, as_typed
from fastseg_losses.training.extras import missing_extras
from fastseg_losses.training.labels import MODES, labels_for
from fastseg_losses.training.settings import MAX_PIXELS

EXIT_OK = 0
EXIT_NOTHING_TO_LEARN = 1
EXIT_UNREADABLE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the census of an index and returns the exit code."""
    parser = Parser(
        prog="debug_masks.py",
        description="Count annotated, empty and unannotated rows of a parquet index, and decode "
        "every image and every annotated mask.",
        epilog=f"exit codes: {EXIT_OK} there is something to learn from; {EXIT_NOTHING_TO_LEARN} "
        "no annotated row has foreground, or all show one class; "
        f"{EXIT_UNREADABLE} wrong option, or the file, or some row of it, cannot be read",
    )
    parser.add_argument("file", metavar="FILE", help="the parquet index")
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="let paths in the index point outside the index's own folder",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse images of more pixels (width times height) (default: %(default)s)",
    )
    parser.add_argument(
        "--headers-only",
        action="store_true",
        help="of annotated rows' images read the header only, and of other rows nothing: several "
        "times faster, but damaged pixels are not noticed",
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="binary",
        help="binary: foreground or not; multiclass: masks hold class ids (default: binary)",
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="number of classes, with --mode multiclass"
    )
    parser.add_argument(
        "--ignore-index",
        type=int,
        metavar="N",
        help="mask value that counts for nothing, with --mode multiclass (default: as train.py)",
    )
    options = parser.parse_args(arguments)
    try:
        labels = labels_for(options.mode, options.num_classes, options.ignore_index)
    except ValueError as error:
        parser.error(as_typed(str(error)))
    missing = missing_extras()
    if missing is not None:
        parser.error(missing)

    # Imported late, so that --help does not wait for torch.
    from fastseg_losses.training.audit import take_census
    from fastseg_losses.training.decode import DataError
    from fastseg_losses.training.index import IndexTable

    try:
        index = IndexTable(
            options.file, allow_outside=options.allow_outside, max_pixels=options.max_pixels
        )
        census = take_census(index, decode_images=not options.headers_only, labels=labels)
    except DataError as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_UNREADABLE
    print("\n".join(census.lines()))
    if census.unreadable:
        return EXIT_UNREADABLE
    return EXIT_OK if census.learnable else EXIT_NOTHING_TO_LEARN


if __name__ == "__main__":
    sys.exit(main())
