"""Hugging Face's Trainer with a SegFormer and a loss of this package in place of its own.

It needs ``pip install 'transformers[torch]'``. The net is small and starts from random weights, so
nothing is downloaded. Run it with ``python examples/hf_trainer.py``; it takes some seconds on a
CPU.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    set_seed,
)

from fastseg_losses import CombinedSegmentationLoss

CLASSES, SIZE, IGNORED = 3, 32, 255


class Blocks(Dataset[dict[str, Tensor]]):
    """Images whose colour tells the class of each block, and their label maps."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, CLASSES, (count, 2, 2), generator=generator)
        ids = ids.repeat_interleave(SIZE // 2, 1).repeat_interleave(SIZE // 2, 2)
        noise = 0.2 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
        self.images = noise + nn.functional.one_hot(ids, 3).movedim(-1, 1)
        ids[:, :4] = IGNORED  # not annotated
        self.labels = ids.to(torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


class SegmentationTrainer(Trainer):
    """A Trainer whose loss is fused cross-entropy, Dice and focal."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.criterion = CombinedSegmentationLoss(
            mode="multiclass", ignore_index=IGNORED, upsample="bilinear"
        )
        # Else Trainer takes the loss to be divided by `num_items_in_batch` already, and with
        # gradient accumulation adds the batches' losses up where it should average them.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one batch; the net gets no labels, so that it computes none of its own."""
        labels = inputs["labels"]
        outputs = model(pixel_values=inputs["pixel_values"])
        # SegFormer's logits have a quarter of the image's height and width; the loss upsamples.
        loss = self.criterion(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


def make_net() -> SegformerForSemanticSegmentation:
    """A SegFormer of a few thousand parameters with random weights."""
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=CLASSES,
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 16, 24, 32],
            num_attention_heads=[1, 2, 2, 4],
            decoder_hidden_size=32,
            semantic_loss_ignore_index=IGNORED,
        )
    )


def main(steps: int = 30) -> list[float]:
    """Train for some steps, and return the losses that were logged."""
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SegmentationTrainer(
            model=make_net(),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=8,
                learning_rate=5e-3,
                logging_steps=max(steps // 3, 1),
                save_strategy="no",
                report_to="none",
                # The default drops what the net's forward does not name.
                remove_unused_columns=False,
            ),
            train_dataset=Blocks(64, seed=1),
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
