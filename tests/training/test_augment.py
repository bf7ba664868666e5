import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastseg_losses.training.augment import Augmentation, Mask, Pixels, augmented, random_words

SIZE = 64
IGNORED = 255
DRAWS = 60


def disk(y: float, x: float, radius: float, *, squeezed: float = 1.0) -> npt.NDArray[np.uint8]:
    """A disk of ones, (1, SIZE, SIZE); squeezed: so many times as high as wide."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    inside = (rows - y) ** 2 + ((columns - x) * squeezed) ** 2 <= radius**2
    return inside.astype(np.uint8)[None]


def noise(channels: int = 3) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (channels, SIZE, SIZE), np.uint8)


def change(
    image: Pixels,
    mask: Mask,
    how: Augmentation,
    row: int,
    *,
    aspect: float = 1.0,
    ignored: int = IGNORED,
) -> tuple[Pixels, Mask]:
    words = random_words(0, 0, row)
    image, changed = augmented(image, mask, how, words, aspect=aspect, ignored=ignored)
    assert changed is not None
    return image, changed


def spread(mask: Mask) -> npt.NDArray[np.float64]:
    """Covariance of the ones' coordinates (x, y)."""
    y, x = np.nonzero(mask[0] == 1)
    return np.cov(np.stack([x, y]))


def test_flips_are_those_of_the_first_word_and_a_repeat_is_drawn_anew() -> None:
    for row in range(8):
        first = np.random.SeedSequence((3, 1, row)).generate_state(1)[0]
        assert random_words(3, 1, row)[0] == first
        y, x = (-1 if first & 1 else 1), (-1 if first & 2 else 1)
        image, mask = noise(), disk(20, 30, 9)
        words = random_words(3, 1, row)
        flipped, drawn = augmented(image, mask, Augmentation(), words, aspect=1.0, ignored=IGNORED)
        assert np.array_equal(flipped, image[:, ::y, ::x])
        assert drawn is not None
        assert np.array_equal(drawn, mask[:, ::y, ::x])
        assert not np.array_equal(random_words(3, 1, row, repeat=1), words)


def test_an_angle_of_nothing_is_the_flips_alone() -> None:
    image, mask = noise(), disk(20, 30, 9)
    for row in range(12):
        turned = change(image, mask, Augmentation(rotate=1e-9), row)
        flipped = change(image, mask, Augmentation(), row)
        # Pillow's bilinear interpolation rounds down: 184.99... becomes 184.
        assert np.abs(turned[0].astype(int) - flipped[0]).max() <= 1
        assert np.array_equal(turned[1], flipped[1])


@pytest.mark.parametrize("aspect", [1.0, 2.0])
def test_image_and_mask_move_alike(aspect: float) -> None:
    mask = disk(20, 38, 12)
    for row in range(DRAWS):
        image, drawn = change(mask * 200, mask, Augmentation(90, 0.5), row, aspect=aspect)
        covered = drawn != IGNORED
        assert np.mean((image > 100) == (drawn == 1), where=covered) > 0.99


def test_what_is_left_uncovered_is_ignored_and_has_the_mean_colour() -> None:
    image, mask = noise(), np.ones((1, SIZE, SIZE), np.uint8)
    mean = np.rint(image.mean((1, 2)))
    uncovered = differing = 0
    for row in range(DRAWS):
        changed, drawn = change(image, mask, Augmentation(45, 0.25), row)
        assert set(np.unique(drawn)) <= {1, IGNORED}
        where = drawn[0] == IGNORED
        filled = (changed == mean[:, None, None]).all(0)
        uncovered += int(where.sum())
        # Pillow's nearest neighbour counts in 2**-16 of a pixel: a border pixel may differ.
        differing += int((filled != where).sum())
    assert uncovered > 10_000
    assert differing <= 3


def test_rotation_reaches_its_angle_and_not_further() -> None:
    line = np.zeros((1, SIZE, SIZE), np.uint8)
    line[:, SIZE // 2 - 1 : SIZE // 2 + 1, 12:-12] = 1
    angles = []
    for row in range(DRAWS):
        (xx, xy), (_, yy) = spread(change(line, line, Augmentation(rotate=20), row)[1])
        angles.append(float(np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))))
    assert max(angles) == pytest.approx(20, abs=2)
    assert min(angles) == pytest.approx(-20, abs=2)


def test_rotation_is_that_of_the_original_picture() -> None:
    # A disk in a picture twice as wide as high is half as wide as high in the square, at any angle.
    mask = disk(SIZE / 2, SIZE / 2, 20, squeezed=2.0)
    distorted = []
    for row in range(DRAWS):
        turned = change(mask, mask, Augmentation(rotate=180), row, aspect=2.0)[1]
        np.testing.assert_allclose(spread(turned), spread(mask), atol=4)
        square = change(mask, mask, Augmentation(rotate=180), row)[1]
        distorted.append(np.abs(spread(square) - spread(mask)).max())
    assert max(distorted) > 40  # as if the picture had been square


def test_scale_reaches_both_ends_and_not_further() -> None:
    mask = disk(SIZE / 2, SIZE / 2, 10)
    whole = np.ones((1, SIZE, SIZE), np.uint8)
    zooms = []
    for row in range(DRAWS):
        how = Augmentation(scale=0.5)
        zoom = float(np.sqrt((change(mask, mask, how, row)[1] == 1).sum() / mask.sum()))
        zooms.append(zoom)
        # Magnified, nothing is uncovered; shrunk, all of the picture is still there.
        covered = float(np.mean(change(whole, whole, how, row)[1] == 1))
        assert covered == pytest.approx(min(zoom, 1) ** 2, abs=0.05)
    assert max(zooms) == pytest.approx(1.5, abs=0.08)
    assert min(zooms) == pytest.approx(1 / 1.5, abs=0.05)


def test_a_crop_lies_anywhere_in_the_picture() -> None:
    ramp = np.broadcast_to(np.arange(SIZE, dtype=np.uint8), (1, SIZE, SIZE)).copy()
    lowest, highest = [], []
    for row in range(4 * DRAWS):
        image = change(ramp, ramp, Augmentation(scale=1.0), row)[0]
        if not (change(ramp, ramp, Augmentation(scale=1.0), row)[1] == IGNORED).any():
            lowest.append(int(image.min()))
            highest.append(int(image.max()))
    assert min(lowest) == 0
    assert max(highest) == SIZE - 1
    assert max(lowest) > 20
    assert min(highest) < SIZE - 20


def test_colour_is_brightness_saturation_and_contrast() -> None:
    image, mask = noise(), disk(20, 30, 9)
    weights = np.array([0.299, 0.587, 0.114])[:, None, None]
    for row in range(DRAWS):
        words = random_words(0, 0, row)
        brightness, contrast, saturation = 1 + 0.4 * (words[5:8] / 2**31 - 1)
        expected = change(image, mask, Augmentation(), row)[0] * brightness
        grey = (expected * weights).sum(0)
        expected = grey + saturation * (expected - grey)
        expected = grey.mean() + contrast * (expected - grey.mean())
        changed, drawn = change(image, mask, Augmentation(colour=0.4), row)
        np.testing.assert_allclose(changed, np.clip(expected, 0, 255), atol=0.51)
        assert set(np.unique(drawn)) == {0, 1}


def test_grey_is_changed_as_the_same_picture_in_rgb() -> None:
    grey, mask = noise(1), disk(20, 30, 9)
    for row in range(DRAWS):
        how = Augmentation(30, 0.3, 0.3)
        a, b = change(grey, mask, how, row), change(np.repeat(grey, 3, 0), mask, how, row)
        assert a[0].shape == (1, SIZE, SIZE)
        assert np.abs(a[0].astype(int) - b[0]).max() <= 1
        assert np.array_equal(a[1], b[1])


def test_class_ids_beyond_a_byte_stay_whole() -> None:
    mask = (disk(30, 30, 15).astype(np.int32)) * 999
    values = set()
    for row in range(5):
        drawn = change(noise(), mask, Augmentation(45, 0.5), row, ignored=65535)[1]
        assert drawn.dtype == np.int32
        values |= set(np.unique(drawn).tolist())
    assert values == {0, 999, 65535}


def test_an_unannotated_row_has_no_mask_to_change() -> None:
    words = random_words(0, 0, 0)
    how = Augmentation(45, 0.5, 0.2)
    image, mask = augmented(noise(), None, how, words, aspect=1.0, ignored=IGNORED)
    assert mask is None
    assert np.array_equal(image, change(noise(), disk(20, 30, 9), how, 0)[0])


def test_shrinking_by_the_most_skips_no_pixel() -> None:
    # Bilinear interpolation looks at 2x2 source pixels: at a step of 2 it still sees every one.
    dots = np.zeros((SIZE, SIZE), np.uint8)
    dots[::2, ::2] = 255
    half = Image.fromarray(dots).transform(
        (SIZE // 2, SIZE // 2),
        Image.Transform.AFFINE,
        (2, 0, 0, 0, 2, 0),
        Image.Resampling.BILINEAR,
    )
    assert set(np.unique(np.asarray(half))) == {63}


@pytest.mark.parametrize(
    ("name", "value", "most"), [("rotate", 181, 180), ("scale", 1.5, 1), ("colour", -0.1, 1)]
)
def test_strengths_out_of_range_are_refused(name: str, value: float, most: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a number from 0 to {most}, got"):
        Augmentation(**{name: value})
