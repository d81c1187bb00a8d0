"""Build the site: ``python docs/site/build.py [FOLDER]``, by default into ``.site/``.

Each version has a folder of its own in it; ``versions.json`` names them for the site's menu, and
``index.html`` leads to the newest one. Whatever MkDocs warns of ends it with an error. It needs
``pip install -e '.[docs]'``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config

import microbatch

HERE = Path(__file__).resolve().parent
PAGE = '<!doctype html><meta http-equiv="refresh" content="0; url={0}"><a href="{0}">{0}</a>\n'


def key(version: str) -> list[int]:
    """Return a version's numbers, so that 0.10 comes after 0.9."""
    return [int(number) for number in re.findall(r"\d+", version)]


def main(folder: Path) -> None:
    """Build this version's pages and tell the others of it."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    version = microbatch.__version__
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
    build(load_config(str(HERE / "mkdocs.yml"), site_dir=str(folder / version), strict=True))
    versions = sorted(
        (path.parent.name for path in folder.glob("*/index.html")), key=key, reverse=True
    )
    named = [
        {"version": one, "title": one, "aliases": ["latest"] if one == versions[0] else []}
        for one in versions
    ]
    (folder / "versions.json").write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(PAGE.format(f"{versions[0]}/index.html"), encoding="utf-8")
    print(f"{version}: {len(list((folder / version).rglob('*.html')))} pages in {folder / version}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".site").resolve())
