import pytest

from fastseg_losses.training.labels import Labels, labels_for


@pytest.mark.parametrize(
    ("num_classes", "ignore_index", "dtype"),
    [(2, 255, "uint8"), (256, 0, "uint8"), (257, 0, "int32"), (3, 256, "int32")],
)
def test_the_type_holds_every_id_and_the_ignored_value(
    num_classes: int, ignore_index: int, dtype: str
) -> None:
    assert Labels(num_classes, ignore_index).dtype == dtype


def test_the_ignored_value_may_be_a_class() -> None:
    assert Labels(4, 2).accepted == "class ids from 0 to 3"
    assert Labels(4, 255).accepted == "class ids from 0 to 3, or 255"


def test_binary_has_no_labels_and_the_default_is_255() -> None:
    assert labels_for("binary", None, None) is None
    assert labels_for("multiclass", 255, None) == Labels(255, 255)
    assert labels_for("multiclass", 256, None) == Labels(256, 65535)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("multilabel", 3, None), ValueError, "mode: expected one of binary, multiclass"),
        (("binary", 3, None), ValueError, "num_classes: expected mode multiclass beside it"),
        (("binary", None, 0), ValueError, "ignore_index: expected mode multiclass beside it"),
        (("multiclass", None, 255), ValueError, "num_classes: expected the number of classes"),
        (("multiclass", 1, 255), ValueError, "num_classes: expected at least 2, got 1"),
        (("multiclass", 3, -1), ValueError, "ignore_index: expected at least 0, got -1"),
        (("multiclass", 3, 65536), ValueError, "ignore_index: expected at most 65535"),
        (("multiclass", 3.0, 255), TypeError, "num_classes: expected an int, got float"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        labels_for(*arguments)  # type: ignore[arg-type]
