"""Loss and counts over the validation rows, which are all annotated."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from fastseg_losses.base import SegmentationLoss
from fastseg_losses.training.batches import decoded, number_of_samples, to_device
from fastseg_losses.training.data import Sample
from fastseg_losses.training.endings import Endings
from fastseg_losses.training.net import Net
from fastseg_losses.training.progress import Progress
from fastseg_losses.training.ring import StatsRing
from fastseg_losses.training.tally import Tally


@torch.no_grad()
def validate(
    net: Net,
    criterion: SegmentationLoss,
    loader: DataLoader[Sample],
    ring: StatsRing,
    tally: Tally,
    endings: Endings,
) -> Tally:
    """Run the net over a validation set.

    Args:
        net: left in evaluation mode.
        criterion: the training loss.
        loader: this process's part of the validation rows.
        ring: an empty ring for the statistics.
        tally: an empty tally, which takes them in.
        endings: says when Ctrl-C came.

    Returns:
        The tally.
    """
    net.evaluate()
    with Progress(number_of_samples(loader), "validation") as progress:
        for batch in loader:
            moved = to_device(batch, ring.device)
            logits, row = net.predict(moved["image"]), ring.next_row()
            criterion(logits, moved["mask"], moved["valid"], return_stats=True, stats_out=row)
            ring.commit()
            for snapshot in decoded(ring.ready(), criterion, tally.num_classes):
                tally.add(snapshot)
                progress.show(val_loss=tally.loss, pred_mean=tally.pred_mean)
            progress.update(len(batch["image"]))
            if endings.interrupted:
                break
        for snapshot in decoded(ring.flush(), criterion, tally.num_classes):
            tally.add(snapshot)
    return tally
