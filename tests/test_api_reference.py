"""`make docs`: the API reference builds without a warning and has every public name."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LISTED = re.search(r"^API +:= ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)
assert LISTED is not None
MODULES = re.findall(r"fastseg_losses[\w.]*", LISTED.group(1))


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    pytest.importorskip("pdoc", reason="pdoc is not installed: pip install '.[dev]'")
    out = tmp_path_factory.mktemp("api")
    built = subprocess.run(
        [sys.executable, "-m", "pdoc", "-d", "google", "-o", str(out), *MODULES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""  # where pdoc writes its warnings
    return out


def test_the_modules_are_those_that_users_import() -> None:
    compat = {
        f"fastseg_losses.compat.{path.stem}"
        for path in (ROOT / "fastseg_losses" / "compat").glob("*.py")
        if "__all__" in path.read_text(encoding="utf-8") and path.stem != "__init__"
    }
    assert compat and compat <= set(MODULES)
    assert {"fastseg_losses", "fastseg_losses.compat", "fastseg_losses.training"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_there(module, pages) -> None:
    page = (pages / f"{module.replace('.', '/')}.html").read_text(encoding="utf-8")
    names = getattr(importlib.import_module(module), "__all__", [])
    assert [name for name in names if f'id="{name}"' not in page] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_says_what_it_is(module) -> None:
    found = importlib.import_module(module)
    names = getattr(found, "__all__", [])
    silent = [n for n in names if callable(getattr(found, n)) and not getattr(found, n).__doc__]
    assert silent == []
