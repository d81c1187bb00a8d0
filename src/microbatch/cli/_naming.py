"""What the command's arguments name as ``module:name``, looked for in the working folder first."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from ._command import WRONG_USE, CommandEnd


def named_object(option: str, name: str) -> Any:
    """Return what stands under a name in a module.

    Args:
        option: Which option named it, for messages.
        name: ``module:name``, where the name may have dots.

    Raises:
        CommandEnd: If it cannot be imported, or is not there.
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise CommandEnd(f"{option} must be module:name, got {name!r}", WRONG_USE)
    here = str(Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except (
        Exception,
        SystemExit,
    ) as error:  # a module that runs its program when it is imported ends it too
        message = f"{option}: {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        raise CommandEnd(message, WRONG_USE) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise CommandEnd(f"{option}: {module_name!r} has no {path!r}", WRONG_USE) from None
    return found


def named_handler(name: str) -> Any:
    """Return the handler that ``--handler`` names.

    Raises:
        CommandEnd: If there is none.
    """
    found = named_object("--handler", name)
    if not callable(found):
        what = f"a {type(found).__name__}"
        raise CommandEnd(f"--handler: {name!r} is {what}, and cannot be called", WRONG_USE)
    return found


def named_errors(names: list[str]) -> tuple[type[Exception], ...]:
    """Return the exception classes that ``--retry-on`` names.

    Raises:
        CommandEnd: If one is none.
    """
    found = []
    for name in names:
        one = named_object("--retry-on", name)
        if not (isinstance(one, type) and issubclass(one, Exception)):
            raise CommandEnd(f"--retry-on: {name!r} is no exception class", WRONG_USE)
        found.append(one)
    return tuple(found)
