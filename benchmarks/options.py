"""What several benchmarks take on their command line."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def program(text):
    if shutil.which(text) is None:
        raise argparse.ArgumentTypeError(f"there is no program {text}")
    return text


def source(text):
    if not (Path(text) / "microbatch" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"there is no microbatch in {text}")
    return text


#: For benchmarks that count: the same elsewhere, and before and after a change.
SUBJECTS = {
    "python": {
        "nargs": "+",
        "type": program,
        "default": [sys.executable],
        "metavar": "PROGRAM",
        "help": "interpreters, each with microbatch's dependencies (default: this one)",
    },
    "source": {
        "nargs": "+",
        "type": source,
        "default": [None],
        "metavar": "FOLDER",
        "help": "`src` folders to compare, the first with the others (default: what is installed)",
    },
}
