"""Pictures and tables that are small on disk and huge in memory."""

import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from training.index_files import encode, image, png, write_simple
from training.runs import run, squares

from fastseg_losses.training import index as index_module
from fastseg_losses.training.audit import take_census
from fastseg_losses.training.decode import DataError, mask_values, open_picture
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.settings import MAX_PIXELS

MEGA = 10**6

# Reads a file as a picture of up to so many pixels and says by how many MiB the process grew at
# most: by its own peak, since ru_maxrss begins with that of the process that started it.
GROWTH = """
import re, sys
from pathlib import Path
from fastseg_losses.training.decode import DataError, image_pixels, open_picture
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
encoded = Path(sys.argv[1]).read_bytes()
before = peak()
try:
    image_pixels(open_picture(encoded, "here", max_pixels=int(sys.argv[2])), "here")
    print("here: accepted")
except DataError as error:
    print(error)
print((peak() - before) // 1024)
"""


def growth(encoded: bytes, max_pixels: int, path: Path) -> tuple[str, int]:
    """What is said of a picture, and what looking at it takes, in MiB."""
    path.write_bytes(encoded)
    command = [sys.executable, "-c", GROWTH, str(path), str(max_pixels)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    said, grown = result.stdout.strip().rsplit("\n", 1)
    return said, int(grown)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + checksum


def black_png(width: int, height: int, bits: int = 1) -> bytes:
    """A whole and valid PNG of zeros, made without ever holding its pixels."""
    packer, line, parts = zlib.compressobj(9), bytes(1 + (width * bits + 7) // 8), []
    for _ in range(height):
        parts.append(packer.compress(line))
    parts.append(packer.flush())
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(parts)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def text_bomb() -> bytes:
    """A small PNG with a compressed comment of 500 MB."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(MEGA)) for _ in range(500)) + packer.flush()
    honest = png(np.zeros((8, 8), np.uint8))
    return honest[:33] + chunk(b"zTXt", b"Comment\0\0" + text) + honest[33:]


def large_jpeg() -> bytes:
    """A JPEG whose header claims 65,000 x 65,000 pixels."""
    encoded = encode(Image.fromarray(np.zeros((8, 8), np.uint8)), "JPEG")
    at = encoded.index(b"\xff\xc0") + 5
    return encoded[:at] + (65_000).to_bytes(2, "big") * 2 + encoded[at + 4 :]


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory as Linux tells it")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: black_png(30_000, 30_000), "30000x30000 is 900000000 pixels, more than the"),
        (lambda: black_png(10_000, 10_000, bits=8), "10000x10000 is 100000000 pixels, more than"),
        (large_jpeg, "65000x65000 is 4225000000 pixels, more than the"),
        (text_bomb, "cannot be decoded"),
    ],
    ids=["zip bomb", "100 megapixels", "JPEG header", "comment"],
)
def test_a_bomb_is_refused_without_the_memory_that_it_asks_for(
    make: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    bomb = make()
    assert len(bomb) < MEGA
    said, grown = growth(bomb, MAX_PIXELS, tmp_path / "bomb")
    assert said.startswith("here: ") and message in said
    assert grown < 16


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory as Linux tells it")
def test_decoding_what_is_refused_would_have_been_seen(tmp_path: Path) -> None:
    said, grown = growth(black_png(10_000, 10_000, bits=8), 100 * MEGA, tmp_path / "bomb")
    assert said == "here: accepted" and grown > 90


def test_images_above_the_usual_limit_can_be_asked_for() -> None:
    # Pillow warns above 89 megapixels and refuses above 179; here the limit alone decides.
    picture = open_picture(black_png(10_000, 10_000), "here", max_pixels=100 * MEGA)
    assert mask_values(picture, "here").shape == (10_000, 10_000)
    assert open_picture(black_png(20_000, 10_000), "here", max_pixels=200 * MEGA).size[0] == 20_000


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_bomb_in_a_set_is_named_with_its_row_and_the_option(
    column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = squares(8)
    (images if column == "image" else masks)[5] = black_png(10_000, 10_000)
    path = write_simple(tmp_path / "d.parquet", 8, image=images, mask=masks)
    assert run(path, tmp_path / "run") == EXIT_BAD_INPUT
    (error,) = capsys.readouterr().err.splitlines()
    assert f"row 5, column {column!r}: 10000x10000 is 100000000 pixels" in error
    assert "(--max-pixels)" in error
    assert run(path, tmp_path / "run", max_pixels=1000) == EXIT_BAD_INPUT
    assert "row 0, column 'image': 32x32 is 1024 pixels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_table_that_grows_when_it_is_read_is_refused(tmp_path: Path) -> None:
    # One picture of 200 kB in 400 rows: stored once, by the dictionary of the column.
    picture = image(0) + bytes(200_000)
    path = write_simple(tmp_path / "d.parquet", 400, image=[picture] * 400, row_group_size=400)
    assert path.stat().st_size < 3 * MEGA
    index = IndexTable(path, max_group_bytes=50 * MEGA)
    with pytest.raises(DataError, match="row group 0 grows when it is read, column 'image', more"):
        index.image_cell(0)
    assert pa.total_allocated_bytes() < 20 * MEGA  # what was read is gone
    found = take_census(IndexTable(path, max_group_bytes=50 * MEGA), [0, 1])
    assert found.unreadable == 2 and "row_group_size=64" in found.problems[0]
    assert IndexTable(path).image_cell(399) == picture  # 80 MB may be read


def test_enormous_texts_in_the_small_columns_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "MAX_SMALL_BYTES", 10 * MEGA)
    for column in ("image_id", "mask_source"):
        path = write_simple(tmp_path / "d.parquet", 300, **{column: ["x" * 100_000] * 300})
        assert path.stat().st_size < MEGA
        with pytest.raises(DataError, match=f"columns .*{column}.*: more than 10000000 bytes"):
            IndexTable(path)


def test_far_too_many_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    count = index_module.MAX_ROWS + 1
    nothing = pa.nulls(count, pa.binary())
    table = pa.table(
        {"image": nothing, "mask": nothing, "has_segmentation": pa.repeat(True, count)}
    )
    pq.write_table(table, path)
    assert path.stat().st_size < MEGA
    with pytest.raises(DataError, match=f"expected at most {count - 1} rows, got {count} in"):
        IndexTable(path)
