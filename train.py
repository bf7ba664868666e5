"""Train a segmentation net; ``python train.py --help`` lists the options."""

import sys

from fastseg_losses.training.config import parse_args


def main() -> int:
    """Read the command line, then load torch and train."""
    config = parse_args()
    from fastseg_losses.training.launch import launch

    return launch(config)


if __name__ == "__main__":
    sys.exit(main())
