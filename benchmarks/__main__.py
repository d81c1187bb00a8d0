"""Run one benchmark by its name; without a name, list them all.

The listing and a wrong name import no benchmark, so they work without the other batchers.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from pathlib import Path

from benchmarks.options import positive
from benchmarks.output import HERE, ROOT, Page, place_of, section_of

NAMES = (
    "goals",
    "overhead",
    "latency",
    "gain",
    "break_even",
    "memory",
    "scale",
    "instructions",
    "streams",
    "durable",
    "jobs",
    "soak",
    "telemetry",
    "loader",
    "engines",
    "http",
)
COMMAND = "python -m benchmarks"


def documentation(name):
    """Return a benchmark's docstring, read from its file."""
    return ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")))


def listing():
    width = max(map(len, NAMES))
    lines = [f"{name:{width}}  {documentation(name).splitlines()[0]}" for name in NAMES]
    usage = f"{COMMAND} NAME [OPTIONS]     ({COMMAND} NAME --help: the options)"
    return "\n".join([usage, "", *lines])


def parser_of(name, module):
    parser = argparse.ArgumentParser(
        prog=f"{COMMAND} {name}",
        description=documentation(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rounds", type=positive, help="how often everything is measured")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / ".benchmarks",
        help="the folder for NAME.json and NAME.md (default: .benchmarks, which git ignores)",
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--tiny", action="store_true", help="only see that it runs: seconds")
    one.add_argument("--page", action="store_true", help="put the tables into their page")
    for flag, settings in getattr(module, "OPTIONS", {}).items():
        parser.add_argument(f"--{flag}", **settings)
    return parser


def wrong(message):
    print(message, file=sys.stderr)
    return 2


def main(arguments):
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *options = arguments
    if name not in NAMES:
        return wrong(f"{COMMAND}: no benchmark {name!r}; choose from: {', '.join(NAMES)}")
    try:
        module = importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in ("benchmarks", "microbatch"):
            raise  # a mistake of ours, not a package that somebody lacks
        return wrong(
            f"{COMMAND} {name}: {error.name} is not installed: pip install -e '.[dev,bench]'"
        )
    parser = parser_of(name, module)
    chosen = parser.parse_args(options)
    place = place_of(name)
    if chosen.page and section_of(place.read_text(encoding="utf-8"), name) is None:
        parser.error(f"{place.relative_to(ROOT)} has no <!-- {name} --> ... <!-- end of {name} -->")
    page = Page(name, chosen.out)
    page.save(module.run(chosen, page))
    print(f"written: {page.path('json')}, {page.path('md')}")
    if chosen.page:
        page.paste()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
