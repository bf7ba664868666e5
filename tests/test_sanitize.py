"""tests/sanitize.py tells a clean run from every other one. (What it runs needs a GPU.)"""

import os
import stat
import sys

import pytest
import sanitize
import sanitize_cases

# In place of the cases and of compute-sanitizer: what they print, and how they end.
CASES = "print('30 cases, 0 wrong')"
TOOL = """
import subprocess, sys, time
tool = sys.argv[sys.argv.index("--tool") + 1]
command = sys.argv[sys.argv.index({python!r}):]
code = subprocess.run(command).returncode
{behaviour}
sys.exit(code)
"""
CLEAN = """
print({"racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"}
      .get(tool, "========= ERROR SUMMARY: 0 errors"))
"""


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Run the script with a sanitizer that behaves so."""
    monkeypatch.setattr(sanitize, "HERE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def run(behaviour=CLEAN, cases=CASES, *options):
        (tmp_path / "sanitize_cases.py").write_text(cases)
        tool = tmp_path / sanitize.COMMAND
        source = TOOL.format(python=sys.executable, behaviour=behaviour)
        tool.write_text(f"#!{sys.executable}\n{source}")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return sanitize.main([str(tmp_path / "logs"), *options])

    return run


def test_a_clean_run(pretended, capsys, tmp_path):
    assert pretended() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, "clean"] for name in ("alone", *sanitize.TOOLS)
    ]
    assert "RACECHECK SUMMARY" in (tmp_path / "logs" / "racecheck.log").read_text()


@pytest.mark.parametrize(
    ("behaviour", "cases", "said"),
    [
        ("print('========= ERROR SUMMARY: 3 errors'); code = 99", CASES, "3 findings"),
        ("print('==== RACECHECK SUMMARY: 1 hazard displayed (0 errors)')", CASES, "1 findings"),
        ("print('========= ERROR SUMMARY: 1 error')", CASES, "1 findings"),
        ("pass", CASES, "no summary"),
        ("time.sleep(60)", CASES, "took too long"),
        (CLEAN + "code = 1", CASES, "0 cases wrong"),
        (CLEAN, "print('2 cases, 1 wrong')", "1 cases wrong"),
    ],
)
def test_everything_else_is_not_clean(behaviour, cases, said, pretended, capsys):
    assert pretended(behaviour, cases, "--tools", "memcheck", "--timeout", "3") == 1
    assert said in capsys.readouterr().out


ONCE = """
import pathlib
mark = pathlib.Path(__file__).with_name("mark")
if not mark.exists():
    mark.touch()
    print("========= Error: No attachable process found. compute-sanitizer timed-out.", flush=True)
    time.sleep(60)
"""


def test_a_process_that_was_not_found_is_started_again(pretended, capsys):
    assert pretended(ONCE + CLEAN, CASES, "--tools", "memcheck", "--timeout", "30") == 0
    assert "memcheck   clean" in capsys.readouterr().out


def test_one_that_is_never_found_is_not_clean(pretended, capsys):
    never = ONCE.replace("mark.touch()", "pass") + CLEAN
    assert pretended(never, CASES, "--tools", "memcheck", "--timeout", "30") == 1
    assert "took too long" in capsys.readouterr().out


def test_without_a_sanitizer_it_says_where_to_get_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.main([str(tmp_path / "logs")]) == 2
    assert "comes with the CUDA toolkit" in capsys.readouterr().out


def test_no_gpu_is_no_clean_run(monkeypatch, capsys):
    """Plain PyTorch under the sanitizer would be clean, whatever the kernels do."""
    if sanitize_cases.DEVICE.type == "cuda":
        pytest.skip("there is a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert sanitize_cases.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().out


def test_a_wrong_case_shows(device, monkeypatch, capsys):
    monkeypatch.setattr(sanitize_cases, "single_cases", lambda large: {})
    assert sanitize_cases.main(["--only", "binary, one pixel"]) == 0
    assert sanitize_cases.main(["--only", "no such case"]) == 1
    agree = sanitize_cases.agree
    monkeypatch.setattr(sanitize_cases, "agree", lambda a, b, t: agree(a * 1.01, b, t))
    assert sanitize_cases.main(["--only", "binary, one pixel"]) == 1
    assert capsys.readouterr().out.count("WRONG") == 1
