"""Rules of the source tree that no tool checks in full."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "fastseg_losses").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
TESTS = sorted(p for name in ("tests", "benchmarks") for p in (ROOT / name).rglob("*.py"))
TRAINING = ROOT / "fastseg_losses" / "training"
LOSSES = [path for path in LIBRARY if TRAINING not in path.parents]

# A file should stay near 300 lines; this is where "near" ends.
MAX_LINES = 320


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_of(path: Path) -> list[str]:
    """The package that `path` belongs to when it is imported, as its parts."""
    parts = list(path.relative_to(ROOT).parent.parts)
    return ["fastseg_losses", *parts] if parts[:1] == ["kernels"] else parts


def imported_modules(source: str, package: list[str]) -> Iterator[str]:
    """Every module that the source imports, in full; `from a import b` is both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports(path: Path, module: str) -> bool:
    found = imported_modules(path.read_text(encoding="utf-8"), package_of(path))
    return any(name == module or name.startswith(module + ".") for name in found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import kernels.terms", "kernels.terms"),
        ("def f():\n    from kernels import terms", "kernels.terms"),
        ("from .training.data import Sample", "fastseg_losses.training.data"),
        ("from . import training", "fastseg_losses.training"),
        ("from fastseg_losses import training", "fastseg_losses.training"),
    ],
)
def test_imports_are_found_in_every_form(source: str, expected: str) -> None:
    assert expected in set(imported_modules(source, ["fastseg_losses"]))


def test_sources_are_found() -> None:
    assert ROOT / "fastseg_losses" / "__init__.py" in LOSSES
    assert ROOT / "kernels" / "terms.py" in KERNELS
    assert TRAINING / "__init__.py" in LIBRARY
    assert Path(__file__) in TESTS
    assert ROOT / "train.py" in SCRIPTS


def test_kernels_is_no_package_of_its_own() -> None:
    # With an __init__.py, `import kernels` from the root would find this folder before Hugging
    # Face's package; as a namespace it loses to any regular package on the path.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_kernels_is_flat() -> None:
    # setuptools is given a list of packages: a sub-folder would silently stay out of the wheel.
    assert [name_of(path) for path in KERNELS if path.parent != ROOT / "kernels"] == []


def test_nothing_imports_top_level_kernels() -> None:
    # kernels.x and fastseg_losses.kernels.x would be two modules: kernels compiled twice, operators
    # registered twice.
    sources = [*LIBRARY, *KERNELS, *SCRIPTS, *TESTS]
    assert [name_of(path) for path in sources if imports(path, "kernels")] == []


def test_losses_do_not_import_training() -> None:
    # The losses depend on torch, Triton and NumPy alone; training brings pandas, pyarrow, Pillow.
    sources = [*LOSSES, *KERNELS]
    assert [name_of(path) for path in sources if imports(path, "fastseg_losses.training")] == []


# What runs code that a file holds, or takes the answer of a file for an object of its choice.
UNSAFE = ("pickle", "cPickle", "dill", "joblib", "marshal", "shelve")
LOADERS = ("torch.load", "np.load", "numpy.load", "yaml.load", "pd.read_pickle")


def unsafe_loads(source: str, where: str) -> list[str]:
    """What in a source could run code that comes from a file."""
    found = [f"{where}: {name}" for name in imported_modules(source, []) if name in UNSAFE]
    for node in ast.walk(ast.parse(source)):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if name not in LOADERS:
            continue
        assert isinstance(node, ast.Call)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        safe = given.get("weights_only") == "True" if name == "torch.load" else False
        # NumPy refuses pickled objects where it is not told otherwise.
        safe = safe or (name in ("np.load", "numpy.load") and "allow_pickle" not in given)
        if not safe:
            found.append(f"{where}: {ast.unparse(node)}")
    return found


def test_no_file_that_is_loaded_can_run_code() -> None:
    assert unsafe_loads("import pickle\ntorch.load(path)", "x") == [
        "x: pickle",
        "x: torch.load(path)",
    ]
    assert unsafe_loads("torch.load(path, weights_only=True)\nnp.load(path)", "x") == []
    others = [*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    sources = {path: path.read_text(encoding="utf-8") for path in [*LIBRARY, *SCRIPTS, *others]}
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        sources[path] = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    assert len(sources) > 50
    found = [line for path, text in sources.items() for line in unsafe_loads(text, name_of(path))]
    assert found == []


def test_source_files_are_short() -> None:
    sources = [*LIBRARY, *KERNELS, *SCRIPTS]
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in sources}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}
