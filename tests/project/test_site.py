"""docs/ as a site: it is built without a warning, every link in it leads somewhere, every page and name is found."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag

import pytest
from pages_support import DOCS, ROOT, blocks_of

import microbatch

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.pages, pytest.mark.timeout(300)]


class Links(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.anchors |= {named["id"]} if named.get("id") else set()
        target = named.get("src") or (named.get("href") if tag != "base" else None)
        if target:
            self.targets.add(target)


def links_of(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


def broken(site: Path) -> list[str]:
    """Return each link of a site's pages that leads nowhere, or away from it to be fetched."""
    pages = {path: links_of(path) for path in site.rglob("*.html") if path.name != "404.html"}
    found = []
    for page, links in pages.items():
        for target in links.targets:
            path, anchor = urldefrag(unquote(target))
            linked = (page.parent / path).resolve() if path else page
            if path.startswith(("http://", "https://", "mailto:", "data:")):
                continue
            if not linked.is_file() or (
                anchor and linked in pages and anchor not in pages[linked].anchors
            ):
                found.append(f"{page.relative_to(site)}: {target}")
    return sorted(found)


def build(folder: Path, script: Path = DOCS / "site/build.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, beside an older version's."""
    folder = tmp_path_factory.mktemp("sites")
    for older in ("0.0.9", "0.0.10"):
        (folder / older).mkdir()
        (folder / older / "index.html").write_text("old")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Path:
    return folder / microbatch.__version__


def test_every_link_leads_somewhere(site):
    """MkDocs checks the links of the Markdown; this checks those that readers click, the navigation included."""
    assert broken(site) == []


def test_a_broken_link_is_seen(tmp_path):
    """The test above is worth what it sees."""
    (tmp_path / "a.html").write_text(
        '<p id="x"><a href="b.html#y">1</a><img src="c.svg"><a href="#x">'
    )
    (tmp_path / "b.html").write_text('<p id="x"><a href="a.html#x">')
    assert broken(tmp_path) == ["a.html: b.html#y", "a.html: c.svg"]


def test_every_page_of_docs_and_every_example_is_there(site):
    """A page that is left out of the site is lost to its readers."""
    for page in DOCS.rglob("*.md"):
        if page != DOCS / "README.md":
            assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file(), page
    for program in (ROOT / "examples").glob("*.py"):
        assert (site / f"examples/{program.stem}.html").is_file(), program


@pytest.mark.parametrize(
    "module", ["microbatch", "microbatch.errors", "microbatch.durable", "microbatch.layers"]
)
def test_every_public_name_has_an_entry_out_of_its_docstring(site, module):
    """The reference of docstrings is whole."""
    anchors = {
        anchor for page in (site / "api").glob("*.html") for anchor in links_of(page).anchors
    }
    names = {name for name in importlib.import_module(module).__all__ if name[0] != "_"}
    if module == "microbatch":
        names -= set(microbatch.errors.__all__)
    assert {name for name in names if f"{module}.{name}" not in anchors} == set()


def test_the_search_finds_every_page_and_the_docstrings(site):
    """The index that the search box reads."""
    found = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    pages = {entry["location"].partition("#")[0] for entry in found}
    everything = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert pages == everything - {"404.html"}
    assert any(entry["location"].endswith("#microbatch.Batcher.submit_nowait") for entry in found)


def test_each_version_is_named_and_the_newest_one_is_the_first(folder):
    """The menu of versions reads this file; 0.0.10 comes before 0.0.9."""
    versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    assert [one["version"] for one in versions] == [microbatch.__version__, "0.0.10", "0.0.9"]
    assert [one["aliases"] for one in versions] == [["latest"], [], []]
    assert f"url={microbatch.__version__}/index.html" in (folder / "index.html").read_text()


def test_the_site_fetches_nothing_from_elsewhere(site):
    """It reads without a network, and tells nobody who reads it."""
    for page in site.rglob("*.html"):
        for target in links_of(page).targets:
            if target.startswith("http"):
                assert f'href="{target}"' in page.read_text(encoding="utf-8"), target
                assert not target.endswith((".js", ".css", ".woff2")), target


def test_a_chart_is_a_table_of_its_arrows(site):
    """Drawing it takes a script from elsewhere; its source is no text for readers."""
    charts = {
        page: [block.source for block in blocks_of(page) if block.language == "mermaid"]
        for page in DOCS.rglob("*.md")
    }
    assert sum(map(len, charts.values())) >= 2
    for page, sources in charts.items():
        if not sources:
            continue
        html = (site / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        assert "stateDiagram" not in html, page
        for line in "".join(sources).splitlines():
            start, arrow, rest = line.strip().partition(" --> ")
            end, _, when = rest.partition(": ")
            start, end = start.replace("[*]", "<em>new</em>"), end.replace("[*]", "<em>gone</em>")
            assert not arrow or f"<td>{start} → {end}</td>\n<td>{when}</td>" in html, line


def test_a_warning_ends_the_build(tmp_path):
    """Strict: a link to a page that is not there is an error."""
    copy = tmp_path / "copy"
    for path in [
        "docs",
        "examples",
        "benchmarks",
        "src",
        "pyproject.toml",
        "LICENSE",
        *ROOT.glob("*.md"),
    ]:
        source = ROOT / path
        target = copy / source.name
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    with (copy / "docs/explanation/faq.md").open("a", encoding="utf-8") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    done = build(tmp_path, copy / "docs/site/build.py")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
