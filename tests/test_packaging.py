"""The wheel: built from a copy of the tree, compared with the tree, imported."""

import os
import shutil
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import fastseg_losses

ROOT = Path(__file__).parents[1]
PACKAGES = {"fastseg_losses": "fastseg_losses", "kernels": "fastseg_losses/kernels"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree, built without network access.

    In a copy: setuptools leaves build/ and *.egg-info behind, and packs what a stale build/ holds.
    """
    tree = tmp_path_factory.mktemp("tree")
    for folder in PACKAGES:
        shutil.copytree(
            ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--disable-pip-version-check", "--wheel-dir", str(out), str(tree)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = out.iterdir()
    return path


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def metadata(wheel: Path, files: set[str]) -> Message:
    [name] = (name for name in files if name.endswith(".dist-info/METADATA"))
    with ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(name).decode("utf-8"))


def test_wheel_has_every_source_file_and_no_other(files: set[str]) -> None:
    expected = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in PACKAGES.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {"fastseg_losses/__init__.py", "fastseg_losses/kernels/terms.py"} <= expected
    assert {name for name in files if name.endswith(".py")} == expected


def test_wheel_says_that_it_is_typed(files: set[str]) -> None:
    assert "fastseg_losses/py.typed" in files


def test_wheel_has_what_the_report_is_made_of(files: set[str]) -> None:
    folder = ROOT / "fastseg_losses" / "training"
    data = {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert {f"fastseg_losses/training/{name}" for name in data} <= files
    assert {"report.css", "report.html.jinja"} <= data


def test_wheel_installs_one_top_level_package(files: set[str]) -> None:
    # A top-level `kernels` in site-packages would overwrite Hugging Face's package of that name.
    tops = {name.split("/")[0] for name in files}
    dist_info = f"fastseg_losses-{fastseg_losses.__version__}.dist-info"
    assert tops == {"fastseg_losses", dist_info}


def test_metadata(metadata: Message, files: set[str]) -> None:
    assert metadata["Name"] == "fastseg-losses"
    assert metadata["Version"] == fastseg_losses.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)


def test_losses_require_torch_triton_and_numpy_alone(metadata: Message) -> None:
    plain = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert plain == {"torch>=2.8", 'triton>=3.4; sys_platform == "linux"', "numpy"}


def test_wheel_carries_its_kernels_inside(wheel: Path, tmp_path: Path) -> None:
    # From a folder that holds a foreign `kernels` next to the package, as site-packages may.
    site = tmp_path / "site"
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text("raise AssertionError('a foreign package')\n")
    code = """
from importlib.util import find_spec
import fastseg_losses
print(*fastseg_losses.__path__, find_spec("fastseg_losses.kernels.terms").origin, sep="\\n")
"""
    # PYTHONPATH goes before site-packages, so an installed or editable copy is not what answers.
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    package = site / "fastseg_losses"
    assert ran.stdout.splitlines() == [str(package), str(package / "kernels" / "terms.py")]
