"""The class map of low-resolution logits at full resolution, by the walk that the losses take."""

from typing import Any

import triton
import triton.language as tl

from fastseg_losses.kernels.cell_classes import class_outputs, fetch_class, survey
from fastseg_losses.kernels.cell_pieces import has_output
from fastseg_losses.kernels.cell_plan import CellLayout, cell_constants
from fastseg_losses.kernels.cell_tiles import mask_tile
from fastseg_losses.kernels.interpolation import corner_pointers, locate, output_pointers
from fastseg_losses.kernels.launch import Device, Launch
from fastseg_losses.kernels.pixels import pixel_base

NOT_SPECIALIZED = (
    *("mask_ptr", "positions_ptr", "weights_ptr", "h", "w", "H", "W", "S", "blocks"),
    *("logits_stride_n", "logits_stride_c", "logits_stride_y", "logits_stride_x", "least"),
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _cell_mask_kernel(
    # outputs
    mask_ptr,  # (N, H, W) of an integer type
    # inputs
    logits_ptr,  # (N, C, h, w)
    positions_ptr,  # (h MOST_Y + w MOST_X,) see cells.py
    weights_ptr,  # likewise
    # sizes
    h,
    w,
    H,
    W,
    S,  # programs a sample
    blocks,  # of BLOCK_W cells in a row
    # strides
    logits_stride_n,
    logits_stride_c,
    logits_stride_y,
    logits_stride_x,
    # scalars
    least,  # of one class: above which logit an output is 1
    # constexprs
    C: tl.constexpr,
    WHOLE: tl.constexpr,
    FULL: tl.constexpr,
    MOST_Y: tl.constexpr,
    MOST_X: tl.constexpr,
    START_Y: tl.constexpr,
    START_X: tl.constexpr,
    SPLIT_Y: tl.constexpr,
    SPLIT_X: tl.constexpr,
    EACH_Y: tl.constexpr,
    EACH_X: tl.constexpr,
    BLOCK_W: tl.constexpr,
    COUNT: tl.constexpr,  # classes at a time
    PTX: tl.constexpr,
):
    PIECES_Y: tl.constexpr = MOST_Y // EACH_Y
    PIECES_X: tl.constexpr = MOST_X // EACH_X
    pid = tl.program_id(0)
    s = pid % S
    n = pid // S
    logits_ptr += pixel_base(n, 0, logits_stride_n, 0, False)
    mask_ptr += n * tl.cast(H, tl.int64) * W
    stride_c = tl.cast(logits_stride_c, tl.int64)
    j = s % blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    there = j < w
    zero = tl.zeros([BLOCK_W], tl.float32)
    for piece_x in range(PIECES_X):
        for step in range(s // blocks, h * PIECES_Y, S // blocks):
            i = step // PIECES_Y
            positions_y, positions_x, across, down = locate(
                positions_ptr, weights_ptr, i, j, step % PIECES_Y, piece_x, h, w, H, W,
                MOST_Y, MOST_X, START_Y, START_X, SPLIT_Y, SPLIT_X, EACH_Y, EACH_X,
            )  # fmt: skip
            ptrs = corner_pointers(logits_ptr, i, j, h, w, logits_stride_y, logits_stride_x)
            if C == 1:
                zs = class_outputs(
                    fetch_class(ptrs, 0, stride_c, None, C), across, down,
                    EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, False,
                )  # fmt: skip
                classes = ()
                for k in tl.static_range(EACH_Y * EACH_X):
                    classes = classes + (tl.where(zs[k] > least, 1.0, 0.0),)
            else:
                state, _ = survey(
                    ptrs, stride_c, None, across, down, zero, C, COUNT,
                    EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, False, False, PTX,
                )  # fmt: skip
                classes = state[1]
            spots = output_pointers(mask_ptr, positions_y, positions_x, W, 1)
            for k in tl.static_range(EACH_Y * EACH_X):
                inside = has_output(k, positions_y, positions_x, there, WHOLE)
                value = classes[k].to(tl.int32).to(mask_ptr.dtype.element_ty)
                tl.store(spots[k], value, mask=inside)


class MaskPlan:
    """The launch of one layout on one device; of several classes, or of one above `least`."""

    def __init__(self, layout: CellLayout, device: Device, least: float) -> None:
        self.layout, self.device, self.least = layout, device, least
        self.tables: tuple[Any, ...] = ()
        self._launch: Any = None

    def launch(self, mask: Any, logits: Any, stream: int | None) -> None:
        """Write the mask (N, H, W) of the logits."""
        tensors = (mask, logits, *self.tables)
        if self._launch is None:
            self._launch = self.mask_launch().bind(tensors)
        self._launch(tensors, (), stream)

    def mask_launch(self) -> Launch:
        """The launch, without its tensors."""
        at, tile = self.layout, mask_tile()
        blocks = -(-at.x.size // tile.block_w)
        steps = at.y.size * (at.y.most // at.each[0])
        wanted = tile.programs * self.device.multiprocessors // (at.N * blocks)
        splits = blocks * max(1, min(wanted, steps))
        scalars = (
            *(at.y.size, at.x.size, at.y.out, at.x.out, splits, blocks),
            *at.logits,
            self.least,
        )
        constexprs = {
            "C": at.C,
            "COUNT": min(2, at.C),
            "PTX": self.device.ptx,
            **cell_constants(at, tile),
        }
        options: dict[str, Any] = {"num_warps": tile.num_warps, "enable_fp_fusion": True}
        if self.device.ptx:
            options["maxnreg"] = tile.registers
        return Launch(_cell_mask_kernel, (at.N * splits, 1, 1), scalars, constexprs, options)
