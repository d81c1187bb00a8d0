"""All subcommands, in the order in which the help lists them. A new one is a module and a line here."""

from __future__ import annotations

from . import (
    _backup,
    _bench,
    _doctor,
    _import_command,
    _jobs,
    _listings,
    _mending,
    _outcomes,
    _queues,
    _ui,
)

COMMANDS = (
    *_queues.COMMANDS,
    *_listings.COMMANDS,
    *_mending.COMMANDS,
    *_jobs.COMMANDS,
    *_outcomes.COMMANDS,
    *_import_command.COMMANDS,
    *_doctor.COMMANDS,
    *_backup.COMMANDS,
    *_bench.COMMANDS,
    *_ui.COMMANDS,
)
