"""The command line of ``train.py``, made from the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from fastseg_losses.training.config import TrainConfig, resolve
from fastseg_losses.training.config_file import beside, read_settings, settings_to_resume
from fastseg_losses.training.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_CANNOT_WRITE,
    EXIT_COLLAPSED,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
    EXIT_OK,
    EXIT_REFUSED,
)
from fastseg_losses.training.settings import COMBINED_WEIGHTS, SYNTHETIC_DEFAULTS

EPILOG = f"""\
exit codes: {EXIT_OK} finished; {EXIT_BAD_INPUT} wrong option, unreadable input, or a --model
that does not work; {EXIT_REFUSED} refused, the training rows show nothing to learn;
{EXIT_COLLAPSED} stopped by --on-collapse stop; {EXIT_NON_FINITE} NaN or Inf;
{EXIT_CANNOT_WRITE} a file of the run cannot be written (last.pt stays as it was);
{EXIT_INTERRUPTED} Ctrl-C (last.pt is saved).

train.py pseudo-label --help: fill the rows that nobody annotated with a net's masks, for
--pseudo-weight.

Without --data an embedded synthetic set is generated and trained on, with its own defaults:
{", ".join(f"--{name.replace('_', '-')} {value}" for name, value in SYNTHETIC_DEFAULTS.items())}.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the option that a typo may have meant."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that works today becomes ambiguous with tomorrow's option.
        super().__init__(**options, allow_abbrev=False)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the command line; what is not known is an error."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unknown argument {unknown[0]}{hint}")
        return options

    def error(self, message: str) -> NoReturn:
        """End the process with code 2; the usage is many lines, and --help has it."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message} (--help lists the options)\n")


def as_typed(message: str, fields: Collection[str] | None = None) -> str:
    """An error message that starts with a field's name, with the option in its place.

    Args:
        message: The message.
        fields: The names that are options; None: those of `train.py` itself.
    """
    name = re.match(r"\w+(?=:| and )", message)
    if fields is None:
        fields = {"config", *(field.name for field in dataclasses.fields(TrainConfig))}
    if name is None or name[0] not in fields:
        return message
    return flag_of(name[0]) + message[name.end() :]


def flag_of(field: str) -> str:
    """The option of a field of `TrainConfig`."""
    return "--" + field.replace("_", "-")


def build_parser() -> Parser:
    """The command line of ``train.py``, made from the fields of :class:`TrainConfig`."""
    parser = Parser(
        prog="train.py",
        description="Train a segmentation net through the fused losses, and watch it learn.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in dataclasses.fields(TrainConfig):
        meta = field.metadata
        title = meta["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        default = COMBINED_WEIGHTS.get(field.name, field.default)
        flag = flag_of(field.name)
        # SUPPRESS: only what the user typed reaches resolve(), which knows the defaults.
        if meta["parse"] is bool:
            group.add_argument(
                flag,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=meta["help"],
            )
            continue
        shown = meta["help"] if default is None else f"{meta['help']} (default: {default})"
        group.add_argument(
            flag,
            type=meta["parse"],
            choices=meta["choices"],
            metavar=meta["metavar"] or (None if meta["choices"] else "N"),
            default=argparse.SUPPRESS,
            help=shown,
        )
    groups["run"].add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="settings from a YAML or JSON file, by the names of these options; a run's "
        "config.json is one. What is typed beside it wins",
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> TrainConfig:
    """Read the command line; wrong options end the process with code 2 and one line."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    try:
        if "config" in given:
            given = beside(read_settings(given.pop("config")), given)
        if given.get("resume") is not None:
            given = settings_to_resume(given["resume"], given)
        return resolve(given)
    except ValueError as error:
        parser.error(as_typed(str(error)))
