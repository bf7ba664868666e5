"""A LightningModule that trains on class ids with a loss of this package.

It needs ``pip install lightning``. Run it with ``python examples/lightning_module.py``; it takes
some seconds on a CPU.
"""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastseg_losses import CombinedSegmentationLoss

CLASSES, SIZE, IGNORED = 3, 32, 255


class Segmentation(L.LightningModule):
    """A small net, its loss, and scores of the whole validation set."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, CLASSES, 1),
        )
        # As a sub-module it moves to the device with the rest; it has no parameter to train.
        self.criterion = CombinedSegmentationLoss(mode="multiclass", ignore_index=IGNORED)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, CLASSES, H, W)."""
        return self.net(images)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """The loss, and what is shown in the bar."""
        images, ids = batch
        loss, stats = self.criterion(self(images), ids, return_stats=True)
        # Tensors on the device, which Lightning reads when it logs, not at every step.
        self.log("train_loss", loss)
        self.log("confidence", stats.pred_mean, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Counts start at 0."""
        self.counts = torch.zeros(3, CLASSES, device=self.device)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """Counts add up over the batches; a mean of each batch's IoU would be another number."""
        images, ids = batch
        loss, stats = self.criterion(self(images), ids, return_stats=True)
        self.counts += torch.stack([stats.class_tp, stats.class_fp, stats.class_fn])
        self.log("val_loss", loss)

    def on_validation_epoch_end(self) -> None:
        """The mean IoU of the classes that occur."""
        # On several devices each has its own share of the set.
        tp, fp, fn = self.all_gather(self.counts).view(-1, 3, CLASSES).sum(0)
        iou = tp / (tp + fp + fn)  # NaN for a class that neither occurs nor is predicted
        self.log("val_miou", iou.nanmean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])


def make_loader(count: int, *, seed: int, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
    """Images whose colour channels tell the class; the left edge is not annotated."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, CLASSES, (count, SIZE // 8, SIZE // 8), generator=generator)
    ids = ids.repeat_interleave(8, 1).repeat_interleave(8, 2)
    noise = 0.5 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    images = noise + nn.functional.one_hot(ids, 3).movedim(-1, 1)
    ids[:, :, :2] = IGNORED
    # uint8 ids are read as they are: no .long(), no one-hot, an eighth of the memory.
    return DataLoader(TensorDataset(images, ids.to(torch.uint8)), batch_size=8, shuffle=shuffle)


def main(epochs: int = 3) -> float:
    """Train, and return the last epoch's mean IoU."""
    L.seed_everything(0)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    train = make_loader(64, seed=1, shuffle=True)
    trainer.fit(Segmentation(), train, make_loader(16, seed=2, shuffle=False))
    score = float(trainer.callback_metrics["val_miou"])
    print(f"mean IoU {score:.3f}")
    return score


if __name__ == "__main__":
    main()
