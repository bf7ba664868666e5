"""Shapes on a background: what the synthetic sets are drawn with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def background(rng: np.random.Generator, size: int) -> Floats:
    """A tilted plane with a few wide bright patches, as bright as the objects but without edges."""
    y, x = np.mgrid[0:size, 0:size] / size
    tilt = rng.uniform(-0.15, 0.15, 2)
    field: Floats = rng.uniform(0.2, 0.35) + tilt[0] * y + tilt[1] * x
    for _ in range(int(rng.integers(1, 4))):
        centre, width = rng.uniform(0, 1, 2), rng.uniform(0.15, 0.3)
        distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
        field += rng.uniform(0.15, 0.3) * np.exp(-distance / (2 * width**2))
    return field


def blob(rng: np.random.Generator, size: int) -> Bools:
    """An ellipse."""
    u, v = _turned(rng, size)
    radii = rng.uniform(0.03, 0.08, 2) * size
    inside: Bools = (u / radii[0]) ** 2 + (v / radii[1]) ** 2 <= 1.0
    return inside


def curve(rng: np.random.Generator, size: int) -> Bools:
    """A bent line, about 1/40 of the image wide: 2 to 3 pixels at the default size."""
    start, end = rng.uniform(0, size, (2, 2))
    bend = (start + end) / 2 + rng.normal(0.0, 0.15 * size, 2)
    t = np.linspace(0.0, 1.0, 2 * size)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    # Squared distance to the nearest of the points, one point at a time to bound the memory.
    y, x = np.mgrid[0:size, 0:size]
    nearest = np.full((size, size), np.inf)
    for point in points[:: max(1, size // 64)]:
        np.minimum(nearest, (y - point[0]) ** 2 + (x - point[1]) ** 2, out=nearest)
    inside: Bools = nearest <= max(1.0, size / 80) ** 2
    return inside


def bar(rng: np.random.Generator, size: int) -> Bools:
    """A rectangle at any angle, two to four times as long as wide."""
    width = rng.uniform(0.03, 0.05) * size
    u, v = _turned(rng, size)
    inside: Bools = (np.abs(u) <= width * rng.uniform(2, 4)) & (np.abs(v) <= width)
    return inside


def ring(rng: np.random.Generator, size: int) -> Bools:
    """A small circle with a hole."""
    radius = rng.uniform(0.035, 0.05) * size
    u, v = _turned(rng, size)
    distance = np.hypot(u, v)
    inside: Bools = (distance <= radius) & (distance >= 0.5 * radius)
    return inside


def picture(rng: np.random.Generator, level: Floats) -> npt.NDArray[np.uint8]:
    """An image (H, W): objects of this brightness, slightly blurred, on a noisy background."""
    size = level.shape[0]
    field = background(rng, size)
    soft = np.asarray(
        Image.fromarray((level * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
    )
    noise = rng.normal(0.0, 0.035, (size, size))
    image = np.clip(field + soft / 255.0 + noise, 0.0, 1.0)
    return np.rint(image * 255).astype(np.uint8)


def _turned(rng: np.random.Generator, size: int) -> tuple[Floats, Floats]:
    """Coordinates around a random centre, turned by a random angle."""
    y, x = np.mgrid[0:size, 0:size]
    centre, turn = rng.uniform(0, size, 2), rng.uniform(0, np.pi)
    u = (x - centre[1]) * np.cos(turn) + (y - centre[0]) * np.sin(turn)
    v = (y - centre[0]) * np.cos(turn) - (x - centre[1]) * np.sin(turn)
    return u, v
