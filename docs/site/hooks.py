"""MkDocs' hooks: the pages that stand outside of docs/, the reference of docstrings, and the navigation.

The Markdown stays as it is read in a checkout: a link to ``../../examples/saga.py`` is one to a file there,
and on the site one to the page that shows the file. The navigation is docs/README.md's, so that each page is
named once. A Mermaid chart, which needs a script from elsewhere to be drawn, is a table on the site.
"""

from __future__ import annotations

import importlib
import pkgutil
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

import microbatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

#: Where a file of the project is on the site, beside the pages of docs/, which keep their places.
PLACES = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "examples": "examples/index.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "ARCHITECTURE.md": "architecture.md",
    "SECURITY.md": "security.md",
    "LICENSE": "license.md",
    "benchmarks/floor.py": "floor.md",
}
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
PLACES |= {f"examples/{path.name}": f"examples/{path.stem}.md" for path in PROGRAMS}
COPIED = {
    f"benchmarks/{path.name}": path.name for path in sorted((ROOT / "benchmarks").glob("*.svg"))
} | {"examples/microbatch.ipynb": "examples/microbatch.ipynb"}
PLACES |= COPIED
ORIGINS = {place: origin for origin, place in PLACES.items()} | {"examples/index.md": "examples/"}

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CHART = re.compile(r"^```mermaid\nstateDiagram-v2\n(.*)^```$", re.MULTILINE | re.DOTALL)
ARROW = re.compile(r" *(\[\*\]|\w+) --> (\[\*\]|\w+)(?:: (.+))?")
ENTRY = re.compile(r"^- \[(.+?)\]\((\S+?)\)", re.MULTILINE)


def public_modules() -> Iterator[str]:
    """Give the modules that users import: the package, those in it, and the engines."""
    yield "microbatch"
    for found in pkgutil.iter_modules(microbatch.__path__, "microbatch."):
        name = found.name.rpartition(".")[2]
        if name == "engines":
            path = [str(Path(microbatch.__file__).parent / "engines")]
            inner = pkgutil.iter_modules(path, "microbatch.engines.")
            yield from (
                one.name for one in inner if not one.name.rpartition(".")[2].startswith("_")
            )
        elif not name.startswith("_") and name != "cli":
            yield found.name


def names_of(module: str) -> list[str]:
    """Return the public names of a module; what the package has too stands there, but for the errors."""
    names = set(importlib.import_module(module).__all__)
    if module == "microbatch":
        names -= set(microbatch.errors.__all__)
    elif module != "microbatch.errors":
        names -= set(microbatch.__all__)
    return sorted((name for name in names if name[0] != "_"), key=str.lower)


MODULES = {module: f"api/{module}.md" for module in public_modules() if names_of(module)}


def reference(module: str) -> str:
    """Return a module's page, whose entries mkdocstrings fills in."""
    entries = "\n\n".join(f"::: {module}.{name}" for name in names_of(module))
    summary = (importlib.import_module(module).__doc__ or "").partition("\n")[0]
    return f"# {module}\n\n{summary}\n\n{entries}\n"


def summary_of(program: Path) -> str:
    """Return the first line of a program's docstring."""
    return re.sub(r'^r?"""', "", program.read_text(encoding="utf-8").partition("\n")[0]).strip('"')


def generated() -> Iterator[tuple[str, str]]:
    """Give each page that is not in docs/: its place and its text."""
    for origin, place in PLACES.items():
        if origin.endswith(".md"):
            yield place, (ROOT / origin).read_text(encoding="utf-8")
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    yield PLACES["LICENSE"], f"# Licence\n\n```text\n{licence}```\n"
    programs = [f"- [`{one.name}`]({one.name}): {summary_of(one)}" for one in PROGRAMS]
    notebook = "- [`microbatch.ipynb`](microbatch.ipynb): A notebook, to be opened in Jupyter."
    listed = "\n".join([*programs, notebook])
    yield (
        PLACES["examples"],
        f"# Examples\n\nEach is a whole program that runs in the tests.\n\n{listed}\n",
    )
    for origin, place in PLACES.items():
        if origin.endswith(".py"):
            source = (ROOT / origin).read_text(encoding="utf-8")
            yield place, f"# {Path(origin).name}\n\n```python\n{source}```\n"
    for module, place in MODULES.items():
        yield place, reference(module)


def navigation() -> list[dict[str, Any]]:
    """Return what docs/README.md lists, then docstrings, programs and the project's own pages."""
    parts = re.split(
        r"^## (.+)$", (ROOT / "docs/README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    pages = {
        title: [{re.sub("`", "", name): path} for name, path in ENTRY.findall(text)]
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    told = [{title: entries} for title, entries in pages.items() if entries]
    api = [{module: place} for module, place in MODULES.items()]
    programs = [{path.name: PLACES[f"examples/{path.name}"]} for path in PROGRAMS]
    return [
        {"microbatch": "index.md"},
        {"All pages": "pages.md"},
        *told,
        {"From the docstrings": api},
        {"Examples": [PLACES["examples"], *programs]},
        {
            "Project": [
                {"Changelog": "changelog.md"},
                {"Benchmarks": "benchmarks.md"},
                {"The benchmarks' floor": "floor.md"},
                {"Architecture": "architecture.md"},
                {"Contributing": "contributing.md"},
                {"Security": "security.md"},
                {"Licence": "license.md"},
            ]
        },
    ]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay the navigation."""
    config.nav = navigation()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere; docs/README.md has its place among them."""
    files.remove(files.src_uris["README.md"])
    for place, text in generated():
        files.append(File.generated(config, place, content=text))
    copied = {place: ROOT / origin for origin, place in COPIED.items()}
    for place, path in {**copied, "site.css": Path(__file__).with_name("site.css")}.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def moved(target: str, page: str) -> str:
    """Return where a relative link of a page leads on the site."""
    if re.match(r"[a-z]+:|#|/", target):
        return target
    path, mark, anchor = target.partition("#")
    origin = ORIGINS.get(page, f"docs/{page}")
    full = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    place = PLACES.get(full, full.removeprefix("docs/"))
    return posixpath.relpath(place, posixpath.dirname(page) or ".") + mark + anchor


def as_table(block: str, page: str) -> str:
    """Return a chart of states as a table of its arrows, and any other block as it is.

    Raises:
        ValueError: If the block is a Mermaid chart of another kind, or a line of it is no arrow.
    """
    if not block.startswith("```mermaid"):
        return block
    chart = CHART.fullmatch(block)
    arrows = [ARROW.fullmatch(line) for line in chart[1].splitlines()] if chart else [None]
    rows = ["| arrow | when |", "|---|---|"]
    for arrow in arrows:
        if arrow is None:
            raise ValueError(f"{page}: a chart must be a stateDiagram-v2 of arrows, got {block}")
        start, end = arrow[1].replace("[*]", "*new*"), arrow[2].replace("[*]", "*gone*")
        rows.append(f"| {start} → {end} | {arrow[3] or ''} |")
    return "\n".join(rows)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the project into links to pages of the site, and charts into tables."""
    del config, files
    if page.file.src_uri not in ORIGINS and page.file.generated_by:
        return markdown
    parts = FENCED.split(markdown)
    for at in range(0, len(parts), 2):
        parts[at] = LINK.sub(lambda m: m[1] + moved(m[2], page.file.src_uri) + m[3], parts[at])
    parts[1::2] = [as_table(block, page.file.src_uri) for block in parts[1::2]]
    return "".join(parts)
