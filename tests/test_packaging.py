"""Wheel and sdist: built from a copy of the tree, compared with it and each other, imported."""

import os
import shutil
import subprocess
import sys
import tarfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import matrix
import pytest

import fastseg_losses

ROOT = Path(__file__).parents[1]
PYTHON = ["Programming Language", "Python"]
PACKAGES = {"fastseg_losses": "fastseg_losses", "kernels": "fastseg_losses/kernels"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a checkout holds, and of what may lie about in one.

    A copy: setuptools leaves build/ and *.egg-info behind, and packs what a stale build/ holds.
    """
    copy = tmp_path_factory.mktemp("tree") / "checkout"
    left = ("__pycache__", "*.egg-info", "results", "images")
    for folder in (*PACKAGES, "tests", "benchmarks", "docs", "examples"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns(*left))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, copy)
    for stray in (
        "runs/last.pt",
        "dist/old.whl",
        "fastseg_losses/notes.txt",
        "kernels/old.py.orig",
    ):
        (copy / stray).parent.mkdir(exist_ok=True)
        (copy / stray).write_text("stray")
    return copy


def build_wheel(source: Path, out: Path) -> Path:
    """A wheel of a folder or an sdist, without network access."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--disable-pip-version-check", "--wheel-dir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = out.iterdir()
    return path


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel but RECORD, which lists the others."""
    with ZipFile(wheel) as archive:
        names = (n for n in archive.namelist() if not n.endswith(("/", ".dist-info/RECORD")))
        return {name: archive.read(name) for name in names}


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run([*command, str(tree)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = out.iterdir()
    return path


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def sources() -> set[str]:
    """Every Python file of the packages, where the wheel has it."""
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in PACKAGES.items()
        for path in (ROOT / folder).rglob("*.py")
    }


@pytest.fixture(scope="module")
def metadata(wheel: Path, files: set[str]) -> Message:
    [name] = (name for name in files if name.endswith(".dist-info/METADATA"))
    with ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(name).decode("utf-8"))


def test_wheel_has_every_source_file_and_no_other(files: set[str]) -> None:
    expected = sources()
    assert {"fastseg_losses/__init__.py", "fastseg_losses/kernels/terms.py"} <= expected
    assert {name for name in files if name.endswith(".py")} == expected


DATA = {"py.typed", "training/report.css", "training/report.html.jinja"}


def test_wheel_has_nothing_else(files: set[str]) -> None:
    others = {name for name in files if not name.endswith(".py")}
    info = f"fastseg_losses-{fastseg_losses.__version__}.dist-info"
    about = {"METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE"}
    expected = {f"fastseg_losses/{name}" for name in DATA} | {f"{info}/{name}" for name in about}
    assert others == expected


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


def test_classifiers_name_the_pythons_that_are_tested(metadata: Message) -> None:
    named = [line.split(" :: ") for line in metadata.get_all("Classifier", [])]
    versions = {tuple(map(int, c[2].split("."))) for c in named if c[:2] == PYTHON and "." in c[-1]}
    assert versions == {(3, minor) for minor in range(10, 14)}
    assert {f"{a}.{b}" for a, b in versions} == {pair.split("/")[0] for pair in matrix.PAIRS}
    assert not any(c[0] == "License" for c in named)  # PEP 639: the expression replaces them


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


# ---- the sdist


def test_sdist_has_the_sources_and_no_stray_file(sdist: Path) -> None:
    top = f"fastseg_losses-{fastseg_losses.__version__}"
    with tarfile.open(sdist) as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    packed = {f"{top}/{path.relative_to(ROOT).as_posix()}" for path in python_files()}
    packed |= {f"{top}/fastseg_losses/{name}" for name in DATA}
    about = {"LICENSE", "README.md", "MANIFEST.in", "pyproject.toml", "PKG-INFO", "setup.cfg"}
    packed |= {f"{top}/{name}" for name in about}
    made = {name for name in names if ".egg-info/" in name}  # setuptools' own notes
    assert names - made == packed


def python_files() -> list[Path]:
    return [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]


def test_sdist_makes_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    again = build_wheel(sdist, tmp_path / "wheel")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)
