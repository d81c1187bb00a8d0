"""The reference of the command, made of its parser: `python tests/cli/command_reference.py` prints its tables."""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING, Any

from microbatch.cli._table import COMMANDS

if TYPE_CHECKING:
    from microbatch.cli._command import Command


def arguments_of(command: Command) -> list[list[str]]:
    """Return the arguments of a command as a table's rows: how it is written, what it means."""
    parser = argparse.ArgumentParser(add_help=False)
    command.arguments(parser)
    actions: list[Any] = vars(parser)["_actions"]
    rows = [[f"`{_written(action)}`", str(action.help or "")] for action in actions]
    if command.json:
        rows.append(["`--json`", "one JSON object a line"])
    return rows


def _written(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"{action.metavar}..." if action.nargs == "*" else str(action.metavar)
    if action.nargs == 0:
        return action.option_strings[0]
    value = action.metavar or "/".join(map(str, action.choices or ()))
    return f"{action.option_strings[0]} {value}"


def section_of(command: Command) -> str:
    """Return what the page has for a command."""
    lines = [f"## `{command.name}`", "", command.summary, ""]
    if command.details:
        lines += [textwrap.fill(command.details, 120), ""]
    lines += ["| argument | meaning |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in arguments_of(command)]
    lines += ["", "```sh", command.example, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n".join(section_of(command) for command in COMMANDS))
