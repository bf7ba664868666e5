import pytest
import torch
from torch import Tensor

from fastseg_losses.base import SegmentationLoss
from fastseg_losses.losses import get_loss_function
from fastseg_losses.training.config import resolve
from fastseg_losses.training.distributed import World
from fastseg_losses.training.joint_regions import JointRegions
from fastseg_losses.training.labels import BINARY_IGNORED
from fastseg_losses.training.objective import Objective
from fastseg_losses.training.valid_shares import ValidShares

SETTINGS = ({}, {"mode": "multiclass", "num_classes": 3, "data": "d.parquet"})


def make(settings: dict[str, object]) -> tuple[SegmentationLoss, Tensor, dict[str, Tensor], Tensor]:
    config = resolve(settings)
    criterion = get_loss_function(config.loss, **config.loss_arguments())
    torch.manual_seed(0)
    logits = torch.randn(4, config.channels, 8, 8, requires_grad=True)
    masks = torch.randint(0, max(2, config.channels), (4, 1, 8, 8), dtype=torch.uint8)
    masks[2, :, :3] = BINARY_IGNORED  # also the default of multiclass
    batch = {
        "mask": masks,
        "valid": torch.tensor([True, False, False, True]),
        "pseudo": torch.tensor([False, True, True, False]),
    }
    return criterion, logits, batch, torch.zeros(criterion.stats_size(config.channels))


def objective(criterion: SegmentationLoss, weight: float | None = None) -> Objective:
    shares = ValidShares(BINARY_IGNORED, World(), torch.device("cpu"))
    return Objective(criterion, shares, weight)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_parts_are_those_of_their_rows_alone(settings: dict[str, object]) -> None:
    criterion, logits, batch, stats = make(settings)
    annotated, pseudo = [0, 3], [1, 2]
    expected = criterion(logits[annotated], batch["mask"][annotated])
    expected = expected + 0.3 * criterion(logits[pseudo], batch["mask"][pseudo])
    loss = objective(criterion, 0.3)(logits, batch, stats)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted)
    assert (gradient[2, :, :3] == 0).all() and (gradient[2, :, 3:] != 0).any()


@pytest.mark.parametrize("settings", SETTINGS)
def test_statistics_see_the_annotated_rows_alone(settings: dict[str, object]) -> None:
    criterion, logits, batch, stats = make(settings)
    alone = torch.zeros_like(stats)
    objective(criterion)(logits, batch, alone)
    objective(criterion, 2.0)(logits, batch, stats)
    assert torch.equal(stats, alone) and stats.any()


def test_without_a_weight_pseudo_masks_are_not_looked_at() -> None:
    criterion, logits, batch, stats = make({})
    loss = objective(criterion)(logits, {k: batch[k] for k in ("mask", "valid")}, stats)
    assert torch.equal(loss, criterion(logits, batch["mask"], batch["valid"]))


@pytest.mark.parametrize("kind", ["valid", "pseudo"])
def test_a_batch_without_rows_of_one_kind_trains_on_the_other(kind: str) -> None:
    criterion, logits, batch, stats = make({})
    batch[kind] = torch.zeros(4, dtype=torch.bool)
    loss = objective(criterion, 1.0)(logits, batch, stats)
    (gradient,) = torch.autograd.grad(loss, logits)
    other = batch["pseudo" if kind == "valid" else "valid"]
    assert torch.isfinite(gradient).all()
    assert (gradient[other] != 0).any() and (gradient[~other] == 0).all()


def test_sure_of_nothing_is_no_loss() -> None:
    criterion, logits, batch, stats = make({})
    batch["mask"] = torch.where(batch["pseudo"].view(4, 1, 1, 1), BINARY_IGNORED, batch["mask"])
    loss = objective(criterion, 1.0)(logits, batch, stats)
    assert torch.equal(loss, objective(criterion)(logits, batch, stats))


def test_parts_of_a_step_add_up_to_the_step() -> None:
    # BCE: a mean over pixels, so the sum of the parts is exact.
    config = resolve({"loss": "bce"})
    criterion = get_loss_function("bce", **config.loss_arguments())
    _, logits, batch, stats = make({})
    stats = torch.zeros(criterion.stats_size(1))
    batch["pseudo"] = torch.tensor([False, True, True, False])
    batch["valid"] = ~batch["pseudo"]
    whole = objective(criterion, 0.5)
    (factor,) = whole.factors([batch])
    assert (factor.valid, factor.pseudo) == (None, None)
    expected = whole(logits, batch, stats, factor)
    parts = [{name: value[part] for name, value in batch.items()} for part in ([0], [1, 2, 3])]
    rows = (logits[:1], logits[1:])
    factors = whole.factors(parts)
    total = sum(
        whole(some, part, stats, factor)
        for some, part, factor in zip(rows, parts, factors, strict=True)
    )
    torch.testing.assert_close(total, expected)


def test_without_a_weight_pseudo_rows_need_not_be_there() -> None:
    criterion, _, batch, _ = make({})
    plain = objective(criterion)
    assert "pseudo" not in plain.needs and "pseudo" in objective(criterion, 1.0).needs
    del batch["pseudo"]
    assert len(plain.factors([batch, batch])) == 2


@pytest.mark.parametrize("settings", SETTINGS)
def test_small_logits_are_upsampled_in_joint_regions_too(settings: dict[str, object]) -> None:
    criterion, logits, batch, _ = make(settings | {"batch_dice": True, "tversky_weight": 0.5})
    small = logits[..., ::4, ::4].detach().requires_grad_()
    expected = criterion(small, batch["mask"], batch["valid"])
    loss = JointRegions(criterion, World())(small, batch["mask"], batch["valid"], None)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, small)
    (wanted,) = torch.autograd.grad(expected, small)
    torch.testing.assert_close(gradient, wanted)
