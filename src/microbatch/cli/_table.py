"""All subcommands, in the order in which the help lists them. A new one is a module and a line here."""

from __future__ import annotations

from . import _backup, _items, _jobs, _mending, _queues, _results

COMMANDS = (
    *_queues.COMMANDS,
    *_items.COMMANDS,
    *_mending.COMMANDS,
    *_jobs.COMMANDS,
    *_results.COMMANDS,
    *_backup.COMMANDS,
)
