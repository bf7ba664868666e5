"""Every loss with every argument in plain PyTorch, as README.md has the formulas.

Shares no code with the library. In float64 it is what the drawn tests take for true, in float32 the
expression that the library's error is compared with. It is written with care (`log_softmax`,
`binary_cross_entropy_with_logits`, `expm1`), so that it is no easy mark.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# As in the library: the least score under a logarithm, the least base of focal Tversky's power.
FLOOR = 1e-7
COMBINED = {"bce": 0.4, "dice": 0.4, "focal": 0.2, "iou": 0.0, "tversky": 0.0}
POINTWISE = ("bce", "ce", "focal")


class Pixels(NamedTuple):
    """What a call holds, (N, C, P); logits and targets are 0 where `live` is False."""

    x: Tensor
    t: Tensor
    live: Tensor  # bool, (N, C, P)
    label: Tensor | None  # (N, 1, P) class ids, 0 where none counts
    softmax: bool
    multiclass: bool


def plain_loss(
    name: str, arguments: dict, shared: dict, x: Tensor, targets: Tensor, valid: Tensor | None
) -> Tensor:
    """A loss as `get_loss_function(name, **arguments, **shared)` has it, in the dtype of x.

    Half-precision logits are computed in float32, as autocast does; autograd rounds the gradient.
    """
    x = x.float() if x.dtype.itemsize == 2 else x
    pixels = read(shared, x, targets, valid)
    N, C, _ = pixels.x.shape
    weights = shared.get("class_weights")
    w = pixels.x.new_ones(C) if weights is None else float32_of(weights, pixels.x)
    reduction = shared.get("reduction", "mean")
    terms = terms_of(name, arguments)
    mixed = pixels.multiclass and any(n in POINTWISE for _, n, _ in terms)
    total = 0.0
    for weight, term, numbers in terms:
        if term in POINTWISE:
            value = point_term(term, numbers, pixels, w, reduction)
        else:
            value = region_term(term, numbers, pixels, w, reduction, shared, per_sample=mixed)
        total = total + weight * value
    return total


def terms_of(name: str, arguments: dict) -> list[tuple[float, str, dict]]:
    """(weight, name, own arguments) of each term."""
    if name != "combined":
        return [(1.0, name, arguments)]
    terms = []
    for term, default in COMBINED.items():
        own = {k[len(term) + 1 :]: v for k, v in arguments.items() if k.startswith(term + "_")}
        weight = own.pop("weight", default)
        if weight:
            terms.append((weight, term, own))
    return terms


def float32_of(values, like: Tensor) -> Tensor:
    """Weights as the library keeps them, which is in float32."""
    return torch.as_tensor(values, dtype=torch.float32, device=like.device).to(like)


def over(a: Tensor, b: Tensor) -> Tensor:
    """a / b, where nothing over nothing is 0."""
    return a / torch.where(b == 0, 1.0, b)


def read(shared: dict, x: Tensor, targets: Tensor, valid: Tensor | None) -> Pixels:
    mode = shared["mode"]
    N = x.shape[0]
    multiclass = mode == "multiclass"
    if shared.get("upsample"):
        x = upsampled(shared, x, targets)
    C = 1 if mode == "binary" else x.shape[1]
    soft = not multiclass or targets.shape == x.shape
    x = x.reshape(N, C, -1)
    t = targets.reshape(N, C if soft else 1, -1)
    live = torch.ones_like(t, dtype=torch.bool)
    if shared.get("ignore_index") is not None:
        live = t.double() != shared["ignore_index"]
    if valid is not None:
        live = live & valid.reshape(N, 1, -1)
    label = None
    if not soft:
        label = torch.where(live, t, 0).long()
        t = torch.zeros_like(x).scatter(1, label, 1.0)
    live = live.expand_as(x)
    t = torch.where(live, t.to(x.dtype), 0.0)
    softmax = multiclass and shared.get("activation") is None
    return Pixels(torch.where(live, x, 0.0), t, live, label, softmax, multiclass)


def upsampled(shared: dict, x: Tensor, targets: Tensor) -> Tensor:
    mode = shared["mode"]
    channel = mode != "binary" or x.dim() > 2 and x.shape[1] == 1
    full = x if channel else x[:, None]
    space = full.dim() - 2
    size = targets.shape[targets.dim() - space :]
    if shared["upsample"] == "nearest":
        return F.interpolate(full, size=size, mode="nearest")
    kind = {1: "linear", 2: "bilinear", 3: "trilinear"}[space]
    corners = shared.get("align_corners", False)
    return F.interpolate(full, size=size, mode=kind, align_corners=corners)


# ---- pointwise terms


def point_term(name: str, numbers: dict, pixels: Pixels, w: Tensor, reduction: str) -> Tensor:
    values = softmax_point if pixels.softmax else sigmoid_point
    value, divisor = values(name, numbers, pixels, w[:, None])
    # where, not a product: what does not count adds nothing, whatever its smoothed target
    value = torch.where(pixels.live[:, : value.shape[1]], value, 0.0)
    if reduction == "sum":
        return value.sum()
    if reduction == "mean":
        return over(value.sum(), divisor.sum())
    if pixels.multiclass:  # each sample's mean
        return over(value.sum((1, 2)), divisor.sum((1, 2)))
    return over(value.sum(2), pixels.live.sum(2))  # each group's, its weight stays


def sigmoid_point(name: str, numbers: dict, pixels: Pixels, w: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted values and weights of the elements, (N, C, P)."""
    x, t = pixels.x, pixels.t
    if name == "focal":
        alpha, gamma = numbers.get("alpha", 0.25), numbers.get("gamma", 2.0)
        balance = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
        missed = t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)  # 1 - p_t
        nll = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        value = balance * power(missed, gamma) * nll
    else:
        e = numbers.get("label_smoothing", 0.0)
        pos = numbers.get("pos_weight")
        pos = None if pos is None else float32_of(pos, x).reshape(-1, 1)
        smoothed = t * (1 - e) + e / 2
        value = F.binary_cross_entropy_with_logits(x, smoothed, pos_weight=pos, reduction="none")
    return w * value, w * pixels.live


def softmax_point(name: str, numbers: dict, pixels: Pixels, w: Tensor) -> tuple[Tensor, Tensor]:
    """Values, with the classes' weights inside, and weights of the pixels, (N, 1, P)."""
    t, label, live = pixels.t, pixels.label, pixels.live
    log_p = torch.log_softmax(pixels.x, 1)
    one_of_them = live[:, :1].to(t) if label is None else (w * t).sum(1, keepdim=True)
    if name == "focal":
        alpha = numbers.get("alpha")
        w = w if alpha is None else w * float32_of(alpha, t)[:, None]
        each = w * power(-torch.expm1(log_p), numbers.get("gamma", 2.0)) * -log_p
    else:
        e = numbers.get("label_smoothing", 0.0)
        if e:
            t, label = t * (1 - e) + e / t.shape[1], None
        each = w * -log_p
    # by gather, as F.cross_entropy: a class of logit -inf costs nothing where it is not the target
    value = (t * each).sum(1, keepdim=True) if label is None else each.gather(1, label)
    return value, one_of_them


def power(missed: Tensor, gamma: float) -> Tensor:
    """missed ** gamma, with a slope of 0 where `missed` has no digits left."""
    return missed.clamp_min(torch.finfo(missed.dtype).tiny) ** gamma


# ---- region terms


def region_term(
    name: str,
    numbers: dict,
    pixels: Pixels,
    w: Tensor,
    reduction: str,
    shared: dict,
    *,
    per_sample: bool,
) -> Tensor:
    p = torch.softmax(pixels.x, 1) if pixels.softmax else torch.sigmoid(pixels.x)
    p = torch.where(pixels.live, p, 0.0)
    sums = [(p * pixels.t).sum(2), p.sum(2), pixels.t.sum(2), pixels.live.to(p).sum(2)]
    if not shared.get("include_background", True):
        sums, w = [s[:, 1:] for s in sums], w[1:]
    hit, predicted, drawn, count = (s.sum(0) for s in sums) if shared.get("batch") else sums
    counts = count > 0
    if shared.get("absent") == "skip":
        counts = counts & (drawn > 0)
    value = torch.where(counts, w * region_loss(name, numbers, hit, predicted, drawn), 0.0)
    weights = torch.where(counts, w, 0.0)
    if reduction == "sum":
        return value.sum()
    if reduction == "mean":
        return over(value.sum(), weights.sum())
    return over(value.sum(-1), weights.sum(-1)) if per_sample else value


def region_loss(name: str, numbers: dict, hit: Tensor, predicted: Tensor, drawn: Tensor) -> Tensor:
    s = numbers.get("smooth", 1.0)
    if name == "dice":
        above, below = 2 * hit + s, predicted + drawn + s
    elif name == "iou":
        above, below = hit + s, predicted + drawn - hit + s
    else:
        a, b = numbers.get("alpha", 0.3), numbers.get("beta", 0.7)
        above, below = hit + s, hit + a * (predicted - hit) + b * (drawn - hit) + s
    nothing = below == 0
    score = torch.where(nothing, 1.0, above / torch.where(nothing, 1.0, below))
    loss = -torch.log(score.clamp_min(FLOOR)) if numbers.get("log_loss") else 1 - score
    gamma = numbers.get("gamma", 1.0)
    # below the floor a straight line: at gamma < 1 the slope at 0 would be infinite
    return loss if gamma == 1 else loss * loss.clamp_min(FLOOR) ** (gamma - 1)
