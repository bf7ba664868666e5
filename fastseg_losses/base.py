"""What all losses share: the common arguments, the buffers, the call and its statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from fastseg_losses.arguments import (
    Absent,
    Activation,
    Backend,
    Mode,
    Reduction,
    Upsample,
    mode_hint,
)
from fastseg_losses.backends import BACKENDS
from fastseg_losses.functional import segmentation_loss
from fastseg_losses.make_spec import make_spec
from fastseg_losses.signatures import Weights, shows_shared, unexpected_argument
from fastseg_losses.spec import LossSpec, PointTerm, RegionTerm
from fastseg_losses.stats import SegmentationStats, per_class, row_size

LossAndStats = tuple[Tensor, SegmentationStats]


@shows_shared()
class SegmentationLoss(nn.Module):
    """What all losses share: the arguments, the buffers and the call. Not for use by itself.

    Args:
        points: the pointwise terms.
        regions: the region terms.
        pos_weight: weight of the positive class in the BCE term, a scalar or (C,), or None; not
            with a softmax.
        class_alpha: (C,) weights of the classes in a softmax focal term, or None.
        **shared: see `SharedArguments`.

    Raises:
        TypeError: an argument of the wrong type, or one that the loss does not have.
        ValueError: an argument outside its range.
    """

    class_weights: Tensor | None
    pos_weight: Tensor | None
    alpha: Tensor | None

    def __init__(
        self,
        points: Sequence[PointTerm],
        regions: Sequence[RegionTerm],
        *,
        mode: Mode = "binary",
        reduction: Reduction = "mean",
        ignore_index: int | None = None,
        class_weights: Weights = None,
        include_background: bool = True,
        batch: bool = False,
        absent: Absent = "keep",
        activation: Activation = None,
        upsample: Upsample = None,
        align_corners: bool = False,
        backend: Backend = "auto",
        pos_weight: Weights = None,
        class_alpha: Tensor | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        self.spec: LossSpec = make_spec(
            points,
            regions,
            mode=mode,
            reduction=reduction,
            ignore_index=ignore_index,
            include_background=include_background,
            batch=batch,
            absent=absent,
            activation=activation,
            upsample=upsample,
            align_corners=align_corners,
        )
        if pos_weight is not None and "bce" not in self.spec.term_names:
            unknown["pos_weight"] = pos_weight
        if class_alpha is not None and "focal" not in self.spec.term_names:
            unknown["class_alpha"] = class_alpha
        if unknown:
            raise unexpected_argument(type(self), next(iter(unknown)))
        if backend not in BACKENDS:
            raise ValueError(
                f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {backend!r}"
            )
        self.backend = backend
        self.register_buffer(
            "class_weights", weight_vector("class_weights", class_weights), persistent=False
        )
        self.register_buffer(
            "pos_weight", weight_vector("pos_weight", pos_weight), persistent=False
        )
        self.register_buffer("alpha", class_alpha, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the weights with the module, but keep them float32: `model.half()` is for nets."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != torch.float32:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def __prepare_scriptable__(self) -> Any:
        # torch.jit.script asks for it first; its own error is about an annotation of `forward`.
        raise NotImplementedError(
            f"{type(self).__name__}: torch.jit.script cannot compile the fused losses; "
            "torch.jit.trace, torch.export and torch.compile can"
        )

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the terms, as in `SegmentationStats.terms`."""
        return self.spec.term_names

    def stats_size(self, num_classes: int = 1) -> int:
        """Number of float32 elements of one statistics row (`stats_out`).

        Args:
            num_classes: C, which matters in multiclass mode alone.
        """
        return row_size(self.term_names, num_classes if self.spec.mode == "multiclass" else 0)

    @overload
    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        valid: Tensor | None = ...,
        return_stats: Literal[False] = ...,
        *,
        stats_out: Tensor | None = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        valid: Tensor | None = ...,
        *,
        return_stats: Literal[True],
        stats_out: Tensor | None = ...,
    ) -> LossAndStats: ...

    @overload
    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        valid: Tensor | None,
        return_stats: Literal[True],
        *,
        stats_out: Tensor | None = ...,
    ) -> LossAndStats: ...

    @overload
    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        valid: Tensor | None = ...,
        return_stats: bool = ...,
        *,
        stats_out: Tensor | None = ...,
    ) -> Tensor | LossAndStats: ...

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        valid: Tensor | None = None,
        return_stats: bool = False,
        *,
        stats_out: Tensor | None = None,
    ) -> Tensor | LossAndStats:
        """Compute the loss, and the statistics when asked.

        Args:
            logits: (N, C, *spatial) float32, float16, bfloat16 or float64, before the activation;
                in binary mode (N, *spatial) too. With `upsample` their spatial size is lower.
            targets: the logits' shape (after the upsampling); bool, integer or floating in [0, 1],
                read without a cast. In multiclass mode class ids (N, *spatial) or (N, 1, *spatial)
                of any integer dtype, or probabilities of the logits' shape.
            valid: bool (N,): whole samples; or (N, *spatial) / (N, 1, *spatial): pixels. None: all
                are valid.
            return_stats: also return a `SegmentationStats` from the same launch.
            stats_out: float32 (stats_size(C),) contiguous device tensor into which the statistics
                are written, a row of a ring, say.

        Returns:
            The loss, float32 (float64 for float64 logits); with return_stats, the pair (loss,
            stats).

        Raises:
            TypeError: a tensor of the wrong type or dtype.
            ValueError: shapes, devices or target values that do not fit.
        """
        buffers = self._buffers  # plain attribute access goes through __getattr__, 0.5 us each
        vector = buffers["alpha" if self.spec.softmax else "pos_weight"]
        inputs = (logits, targets, valid, buffers["class_weights"], vector)
        loss, row = segmentation_loss(
            self.spec, inputs, backend=self.backend, want_stats=return_stats, stats_out=stats_out
        )
        if not return_stats:
            return loss
        assert row is not None  # it was asked for
        return loss, SegmentationStats(row, self.spec.term_names, per_class(self.spec, logits))

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's returns Any

    def extra_repr(self) -> str:
        """The spec's fields that matter, for `print(criterion)`."""
        spec = self.spec
        terms = " + ".join(f"{t.weight:g} {t}" for t in spec.terms)
        shown = {"mode": spec.mode, "reduction": spec.reduction, "backend": self.backend}
        for field in fields(spec):
            value = getattr(spec, field.name)
            named = field.name in shown or field.name in ("points", "regions")
            if field.init and not named and value != field.default:
                shown[field.name] = value
        texts = [f"{name}={value!r}" for name, value in shown.items()]
        for name, buffer in self._buffers.items():
            if buffer is not None:
                texts.append(f"{name} of {buffer.numel()}")
        return f"{terms}; {', '.join(texts)}"


def weight_vector(name: str, values: Weights) -> Tensor | None:
    """Weights as a float32 vector of their own.

    Raises:
        TypeError: no number and no flat sequence of numbers.
        ValueError: a number that is negative or not finite, or no number at all.
    """
    if values is None:
        return None
    expected = f"{name}: expected a number or a flat sequence of numbers"
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{expected}, got {values!r}{mode_hint(values)}")
    # Read on the CPU, where numbers stay if the default device is "meta", which holds none.
    where = values.device if isinstance(values, Tensor) else torch.device("cpu")
    if where.type == "meta":
        raise ValueError(f"{expected}, got a tensor on device 'meta', which holds none")
    try:
        vector = torch.as_tensor(values, dtype=torch.float32, device=where).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{expected}, got {values!r}") from error
    if vector.dim() > 1:
        raise ValueError(f"{expected}, got shape {tuple(vector.shape)}")
    vector = vector.reshape(-1)
    if vector.numel() == 0 or not bool(torch.isfinite(vector).all()) or bool((vector < 0).any()):
        raise ValueError(f"{name}: expected finite numbers of at least 0, got {values!r}")
    default = torch.get_default_device()
    return vector if isinstance(values, Tensor) or default.type == "meta" else vector.to(default)
