"""What help(), inspect and the errors say of the arguments that all losses share."""

import inspect
import pydoc

import pytest

import fastseg_losses
from fastseg_losses import CrossEntropyLoss, DiceLoss, FocalLoss, get_loss_function
from fastseg_losses.base import SegmentationLoss
from fastseg_losses.losses import LOSSES
from fastseg_losses.signatures import MARK, SharedArguments

SHARED = list(SharedArguments.__annotations__)
by_class = pytest.mark.parametrize("cls", [*LOSSES.values(), SegmentationLoss])


@by_class
def test_help_describes_every_argument(cls):
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    names = [name for name in inspect.signature(cls).parameters]
    assert set(SHARED) <= set(names)
    for name in names:
        assert f"    {name}: " in text, name
    assert MARK.strip() not in text
    assert "Initialize internal Module state" not in text


@by_class
def test_signatures_agree_with_what_is_taken(cls):
    parameters = inspect.signature(cls).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if cls is SegmentationLoss:
        return
    defaults = {name: parameters[name].default for name in SHARED}
    assert repr(cls(**defaults)) == repr(cls())
    assert defaults["mode"] == ("multiclass" if cls is CrossEntropyLoss else "binary")


def test_a_subclass_has_its_own_signature():
    class Mine(DiceLoss):
        def __init__(self, factor: float) -> None:
            super().__init__(smooth=factor)

    assert list(inspect.signature(Mine).parameters) == ["factor"]
    assert Mine(2.0).spec.regions[0].smooth == 1.0  # dice has half of it


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("ignore_idx", "did you mean 'ignore_index'[?]"),
        ("from_logits", "the losses take logits.*fastseg_losses.compat.smp"),
        ("sigmoid", "the losses take logits.*fastseg_losses.compat.monai"),
        ("weight", "class_weights"),
        ("pos_weight", "the class takes smooth, log_loss, mode, reduction, ignore_index"),
    ],
)
def test_unknown_arguments_are_answered_with_the_known_ones(argument, hint):
    message = f"^DiceLoss: unexpected argument '{argument}'; .*{hint}.*, backend$"
    with pytest.raises(TypeError, match=message):
        DiceLoss(**{argument: True})


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ce"])
def test_a_mode_by_position_is_answered_with_the_keyword(name):
    with pytest.raises(TypeError, match="; mode is a keyword: mode='multiclass'$"):
        LOSSES[name]("multiclass")


def test_a_string_is_no_alpha():
    with pytest.raises(TypeError, match="^alpha: expected a number, got 'high'$"):
        FocalLoss(alpha="high")


def test_the_package_lists_its_public_names_alone():
    get_loss_function("dice")
    public = [name for name in dir(fastseg_losses) if not name.startswith("_")]
    assert public == sorted(fastseg_losses.__all__)
