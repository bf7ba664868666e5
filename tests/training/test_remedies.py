import re
import shlex
from pathlib import Path

import pytest

from fastseg_losses.training.command_line import build_parser
from fastseg_losses.training.config import resolve
from fastseg_losses.training.findings import Cause
from fastseg_losses.training.remedies import GUIDE, census_command, remedy

ROOT = Path(__file__).parents[2]
BINARY = resolve({"data": "my set/index.parquet"})
CLASSES = resolve({"data": "d.parquet", "mode": "multiclass", "num_classes": 7})


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_steps_and_a_section_that_exists(cause: Cause) -> None:
    guide = (ROOT / GUIDE).read_text(encoding="utf-8")
    advice = remedy(cause, BINARY)
    assert f"\n## {advice.section}\n" in guide
    assert bool(advice.steps) == (cause is not Cause.RECOVERED)
    assert set(advice.commands) <= set(range(len(advice.steps)))


def test_the_options_that_it_names_exist() -> None:
    known = {flag for action in build_parser()._actions for flag in action.option_strings}
    steps = [step for cause in Cause for step in remedy(cause, BINARY).steps]
    named = {flag for step in steps for flag in re.findall(r"--[a-z-]+", step)}
    assert named and named <= known


def test_the_command_is_that_of_the_runs_own_data() -> None:
    assert census_command(BINARY) == "python debug_masks.py 'my set/index.parquet'"
    parts = shlex.split(census_command(CLASSES))
    assert parts[3:] == ["--mode", "multiclass", "--num-classes", "7", "--ignore-index", "255"]
    assert remedy(Cause.ONE_CLASS, CLASSES).commands == {0: census_command(CLASSES)}
    synthetic = resolve({})
    assert census_command(synthetic) == "python debug_masks.py INDEX"
