"""The packages of the extra ``train``, which the losses alone do not need."""

from importlib.util import find_spec

# By the name that is imported, which for Pillow is not the one that is installed.
PACKAGES = {
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "yaml": "pyyaml",
    "jinja2": "jinja2",
}


def missing_extras(*, tensorboard: bool = False) -> str | None:
    """What to install, in words; None if nothing is missing.

    Args:
        tensorboard: Whether that is needed too.
    """
    needed = PACKAGES | ({"tensorboard": "tensorboard"} if tensorboard else {})
    missing = [package for name, package in needed.items() if find_spec(name) is None]
    if not missing:
        return None
    return f"the trainer needs {', '.join(missing)}: pip install '.[train]'"
