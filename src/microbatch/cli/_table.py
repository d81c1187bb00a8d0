"""All subcommands, in the order in which the help lists them. A new one is a module and a line here."""

from __future__ import annotations

from . import _queues

COMMANDS = (*_queues.COMMANDS,)
