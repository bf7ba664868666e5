"""A training that is killed after a step: python killed_run.py STEP [options of train.py].

With STEP "15s" it is killed when last.pt has been saved after step 15, before what follows.
"""

import os
import signal
import sys
from typing import Any

from torch import nn
from training.runs import small_net

from fastseg_losses.training import launch as launching
from fastseg_losses.training.command_line import parse_args
from fastseg_losses.training.trainer import Trainer


def net_with_dropout(spec: str | None, classes: int, head_stride: int = 1) -> nn.Module:
    """A net whose steps draw random numbers."""
    net = small_net(spec, classes, head_stride)
    net.stem.append(nn.Dropout(0.2))
    return net


def main() -> int:
    """Run; at the step the process kills itself, as the system does without memory."""
    last = int(sys.argv[1].rstrip("s"))
    name = "save_last" if sys.argv[1].endswith("s") else "train_step"
    original = getattr(Trainer, name)

    def killed(self: Trainer, *batches: dict[str, Any]) -> None:
        original(self, *batches)
        if self.step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(Trainer, name, killed)
    launching.build_model = net_with_dropout  # type: ignore[assignment]
    return launching.launch(parse_args(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
