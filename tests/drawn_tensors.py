"""Sizes, logits, targets and masks of a drawn case, and where they lie in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = {"small": 0.3, "usual": 3.0, "large": 10.0, "saturated": 3.0}
SATURATED = 1e4  # what a broken net puts out; float16 ends at 65504


def make_logits(shape: tuple[int, ...], values: str) -> Tensor:
    logits = SCALES[values] * torch.randn(shape)
    if values == "saturated":
        far = torch.rand(shape) < 0.2
        logits = torch.where(far, SATURATED * logits.sign(), logits)
    return logits


def make_ids(shape: tuple[int, ...], C: int, ignored: int | None) -> Tensor:
    """Class ids, of only a few of many classes: the others are absent."""
    ids = torch.randint(0, C, (min(C, 7),))[torch.randint(0, min(C, 7), shape)]
    return ids if ignored is None else ids.masked_fill(torch.rand(shape) < 0.3, ignored)


def make_masks(shape: tuple[int, ...], soft: bool, multiclass: bool, ignored: int | None) -> Tensor:
    """Masks of 0 and 1, empty and full ones among them; soft: anything in [0, 1]."""
    share = torch.rand(shape[:2] if len(shape) > 1 else shape)  # of each sample and class
    share = share.reshape(*share.shape, *[1] * (len(shape) - share.dim()))
    masks = (torch.rand(shape) < 1.4 * share - 0.2).float()
    if soft:
        masks = torch.where(torch.rand(shape) < 0.5, masks, torch.rand(shape))
    if soft and multiclass:
        masks = torch.softmax(4 * torch.randn(shape), 1)
    return masks if ignored is None else masks.masked_fill(torch.rand(shape) < 0.3, ignored)


def make_valid(shape: tuple[int, ...], kind: str) -> Tensor | None:
    if kind == "none":
        return None
    return torch.rand(shape[:1] if kind == "sample" else shape) < 0.7


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values elsewhere in memory ("expanded": those of the first sample for all)."""
    if layout == "channels_last" and x.dim() > 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":  # every other sample
        return torch.stack([x, x], 1)[:, 0]
    if layout == "cropped" and x.dim() > 2:
        return F.pad(x, (1, 2))[..., 1:-2]
    if layout == "transposed" and x.dim() > 3:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return x[:1].expand_as(x)
    if layout == "odd address":  # no multiple of 16 bytes, as compiled code likes them
        return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    return x


SIZES = {
    1: [1, 2, 3, 7, 16, 31, 97, 256, 1021, 4099, 65536],
    2: [1, 2, 3, 5, 8, 13, 16, 31, 64, 127, 256],
    3: [1, 2, 3, 5, 8, 16, 31],
}


def draw_size(axes: int, most: int, any_) -> tuple[int, ...]:
    """A spatial size of at most so many pixels, a single one among them."""
    size: list[int] = []
    for _ in range(axes):
        room = max(1, most // torch.Size(size).numel())
        size.append(any_([n for n in SIZES[axes] if n <= room]))
    return tuple(size)
