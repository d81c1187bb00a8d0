"""Call one function of a benchmark in a process of its own, under any interpreter, over any source.

The answer is the last line that the process prints, as JSON.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.output import ROOT


@dataclass(frozen=True)
class Subject:
    """What is measured: an interpreter, and the `src` folder of the microbatch that it imports."""

    python: str = sys.executable
    source: str | None = None  # None: the one that is installed

    def call(self, function, *arguments, under=(), environment=None):
        """Return what a function of this package returns there."""
        name = [function.__module__, function.__name__]
        command = [*under, self.python, "-m", "benchmarks.child", *name, json.dumps(arguments)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
        if self.source is not None:
            environment["PYTHONPATH"] = str(Path(self.source).resolve())
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    @functools.cached_property
    def version(self):
        return self.call(_version)

    @functools.cached_property
    def contenders(self):
        """The names of those who are installed there."""
        return self.call(_contenders)


def subjects(chosen):
    """Return {heading: subject} for every interpreter over every source."""
    found = {}
    for python in chosen.python:
        for source in chosen.source:
            subject = Subject(python, source)
            heading = subject.version if source is None else f"{subject.version}, {source}"
            found[heading] = subject
    return found


def firsts(subjects):
    """Return {heading: the heading of the first source under the same interpreter}."""
    return {
        heading: next(one for one, other in subjects.items() if other.python == subject.python)
        for heading, subject in subjects.items()
    }


def _version():
    return f"CPython {'.'.join(map(str, sys.version_info[:3]))}"


def _contenders():
    from benchmarks import contenders

    return [name for name, contender in contenders.ALL.items() if contenders.installed(contender)]


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.child", description=__doc__)
    parser.add_argument("module")
    parser.add_argument("function")
    parser.add_argument("arguments", type=json.loads)
    chosen = parser.parse_args()
    function = getattr(importlib.import_module(chosen.module), chosen.function)
    print(json.dumps(function(*chosen.arguments)), flush=True)
    os._exit(0)  # what a figure leaves behind, as a million callers, need not be taken apart


if __name__ == "__main__":
    main()
