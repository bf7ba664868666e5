"""Says whether a data set's masks can teach a net anything: python debug_masks.py FILE."""

import argparse
import sys
from collections.abc import Sequence

EXIT_OK = 0
EXIT_NOTHING_TO_LEARN = 1
EXIT_UNREADABLE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the census of an index and returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Count annotated, empty and unannotated rows of a parquet index and look at "
        "every annotated mask.",
        epilog=f"exit codes: {EXIT_OK} there is something to learn from; {EXIT_NOTHING_TO_LEARN} "
        f"no annotated row has foreground; {EXIT_UNREADABLE} the file, or some row of it, cannot "
        "be read",
    )
    parser.add_argument("file", metavar="FILE", help="the parquet index")
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="let paths in the index point outside the index's own folder",
    )
    parser.add_argument(
        "--decode-images",
        action="store_true",
        help="decode every image in full, not only its header (slower)",
    )
    options = parser.parse_args(arguments)

    # Imported late, so that --help does not wait for torch.
    from fastseg_losses.training.audit import take_census
    from fastseg_losses.training.decode import DataError
    from fastseg_losses.training.index import IndexTable

    try:
        index = IndexTable(options.file, allow_outside=options.allow_outside)
        census = take_census(index, decode_images=options.decode_images)
    except DataError as error:
        print(f"debug_masks.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_UNREADABLE
    print("\n".join(census.lines()))
    if census.unreadable:
        return EXIT_UNREADABLE
    return EXIT_OK if census.learnable else EXIT_NOTHING_TO_LEARN


if __name__ == "__main__":
    sys.exit(main())
