"""Train a segmentation net; ``python train.py --help`` lists the options."""

import sys

from fastseg_losses.training.command_line import parse_args
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT
from fastseg_losses.training.extras import missing_extras
from fastseg_losses.training.pseudo_label import COMMAND
from fastseg_losses.training.pseudo_label import main as pseudo_label


def main() -> int:
    """Read the command line, then load torch and train."""
    if sys.argv[1:2] == [COMMAND]:
        return pseudo_label(sys.argv[2:])
    config = parse_args()
    missing = missing_extras(tensorboard=config.tensorboard)
    if missing is not None:
        print(f"train.py: error: {missing}", file=sys.stderr)
        return EXIT_BAD_INPUT
    from fastseg_losses.training.launch import launch

    return launch(config)


if __name__ == "__main__":
    sys.exit(main())
