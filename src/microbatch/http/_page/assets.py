"""The templates, and the files that belong to the pages: one style sheet, one script, one icon."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import words

_HERE = Path(__file__).parent

_TYPES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class File(NamedTuple):
    """A file of ours.

    Attributes:
        content: Its bytes.
        media_type: What it is.
        digest: What changes with it: it stands in its address, so that browsers may keep it for ever.
    """

    content: bytes
    media_type: str
    digest: str


def _file(name: str, media_type: str) -> File:
    content = (_HERE / "static" / name).read_bytes()
    return File(content, media_type, hashlib.sha256(content).hexdigest()[:16])


FILES = {name: _file(name, media_type) for name, media_type in _TYPES.items()}

_environment = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(
    span=words.span,
    moment=words.moment,
    stamp=words.stamp,
    count=words.count,
    per_second=words.per_second,
    size=words.size,
    percent=words.percent,
)
_environment.globals["files"] = FILES


def render(name: str, context: dict[str, Any]) -> str:
    """Return a page."""
    return _environment.get_template(name).render(context)
