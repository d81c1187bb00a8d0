"""benchmarks/README.md holds the figures: what can be computed from them is, and other pages quote them as they are."""

from __future__ import annotations

import re

import pytest

from benchmarks import break_even, memory
from benchmarks.__main__ import NAMES, parser_of
from benchmarks.output import README, ROOT, Page, about, pasted, place_of, section_of

PAGE = README.read_text(encoding="utf-8")
SECTIONS = {name: section for name in NAMES if (section := section_of(PAGE, name)) is not None}


def tables(section: str) -> list[list[list[str]]]:
    """Return the rows of each table, without its heading."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        found.append(rows[2:])
    return found


def median(cell: str) -> float:
    """Return the figure before the quartiles."""
    return float(cell.split(" (", maxsplit=1)[0].replace(",", ""))


def test_the_page_is_short_and_has_one_picture_at_most():
    """It is read, not searched."""
    assert len(PAGE.splitlines()) < 300
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE)
    assert len(pictures) <= 1
    assert [path.name for path in README.parent.glob("*.svg")] == pictures


def test_raw_results_are_written_where_git_does_not_look():
    """They would grow with every run, and tell little that the page does not."""
    folder = parser_of("memory", memory).get_default("out")
    assert folder == ROOT / ".benchmarks"
    ignored = ROOT / ".gitignore"  # no part of a source distribution
    assert not ignored.exists() or f"{folder.name}/" in ignored.read_text().splitlines()
    assert [path.name for path in README.parent.rglob("*.json")] == []


def test_every_mark_of_the_page_is_a_benchmarks():
    """A mark with a slip would keep its old figures for ever."""
    marks = re.findall(r"^<!-- (.+) -->$", PAGE, re.MULTILINE)
    assert sorted(marks) == sorted(mark for name in SECTIONS for mark in (name, f"end of {name}"))
    assert {"goals", "break_even", "instructions"} <= SECTIONS.keys()


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_tells_when_and_where_its_figures_were_taken(name):
    """A figure without its machine is a rumour."""
    first = SECTIONS[name].splitlines()[0]
    assert re.match(
        r"20\d\d-\d\d-\d\d, commit [0-9a-f]{7}, .+, \d+ cores, Linux \S+, CPython 3\.\d+\.\d+, load [\d.]+ at the end\.$",
        first,
    )


def test_what_a_run_writes_takes_the_place_of_its_section_alone(tmp_path):
    """The other figures are of other days."""
    page = Page("memory", tmp_path)
    page.table(["bytes each", "number"], [("of a batcher", 2)])
    page.save({})
    written = page.path("md").read_text(encoding="utf-8")
    facts = about()
    assert written.startswith(f"{facts['date']}, {facts['commit']}, {facts['processor']}")
    changed = pasted(PAGE, "memory", written)
    assert section_of(changed, "memory") == written
    assert pasted(changed, "memory", SECTIONS["memory"]) == PAGE


def test_goals_are_met_where_the_page_says_so():
    """The column is what people read."""
    [rows] = tables(SECTIONS["goals"])
    assert len(rows) >= 19
    for what, goal, reached, met, _ in rows:
        limit = float(re.match(r"<= ([\d.]+)", goal)[1])
        assert met == ("met" if median(reached) <= limit else "missed"), what


def test_the_goals_of_engines_are_met_where_their_page_says_so():
    """As above, for the table that stands in docs/: the ratio, and batches that are no smaller."""
    section = section_of(place_of("engines").read_text(encoding="utf-8"), "engines")
    rows, deaths = tables(section)
    assert len(rows) == 6
    assert len(deaths) == 3
    for name, sink, _, floor, ours, reached, *_ in rows:
        sizes = [float(cell.split(", ")[1]) for cell in (floor, ours)]
        good = median(reached) >= 0.95 and sizes[1] >= sizes[0]
        assert ("MISSED" in reached) != good, (name, sink)


def test_the_break_even_follows_from_the_figures_beside_it():
    """What a batch pays above, F, c and the knee are computed, not measured."""
    costs, curve = tables(SECTIONS["break_even"])
    assert [row[0] for row in costs] == list(break_even.WAYS)
    for _, cost, above in costs:
        assert break_even.pays_above(median(cost)) == pytest.approx(float(above), abs=0.011)
    rates = {int(size.replace(",", "")): median(rate) for size, rate, _ in curve}
    assert list(rates) == list(break_even.ROWS)
    fixed, each, model = break_even.by_model(rates)
    assert [float(row[2]) for row in curve] == pytest.approx(list(model.values()), rel=0.005)
    said = re.search(
        r"A transaction takes (\d+) us, a row beside it ([\d.]+) us: the knee is at (\d+) rows",
        SECTIONS["break_even"],
    )
    assert [float(one) for one in said.groups()] == pytest.approx(
        [fixed, each, fixed / each], rel=0.005
    )


def test_the_page_on_tuning_has_the_figures_of_the_break_even_and_a_curve_that_rises():
    """Its figures have a command, and its curve the sizes and the course of the measured one."""
    page = (ROOT / "docs/how-to/tuning.md").read_text(encoding="utf-8")
    costs, curve = tables(SECTIONS["break_even"])
    many, nowait, task = (median(cost) for _, cost, _ in costs)
    text = " ".join(page.split())
    assert (
        f"{many:.2f} us an item by `submit_many`, {nowait:.2f} us by `submit_nowait`, {task:.1f} us"
        in text
    )
    many, nowait, task = (float(above) for *_, above in costs)
    assert f"costs more than {many:.2f}, {nowait:.2f} or {task:.1f} us by itself" in text
    shown = re.findall(r"^max_batch_size=(\d+) +([\d,]+) rows/s$", page, re.MULTILINE)
    assert [size for size, _ in shown] == [row[0].replace(",", "") for row in curve]
    for rates in ([median(rate) for _, rate in shown], [median(rate) for _, rate, _ in curve]):
        assert rates == sorted(rates), rates
        assert rates[2] > 10 * rates[0], rates


def test_the_comparisons_figures_are_the_benchmarks():
    """The page that compares quotes; it measures nothing by itself."""
    page = (ROOT / "docs/explanation/comparison.md").read_text(encoding="utf-8")
    [shown] = [
        table for table in tables(page) if table and table[0][0].startswith("microbatch, `submit`")
    ]
    cpu = {row[0]: row[3].split(" (")[0] for row in tables(SECTIONS["overhead"])[0]}
    alone = {row[0]: row[1].split(" (")[0] for row in tables(SECTIONS["latency"])[0]}
    each = {row[0]: row[1].split(" (")[0] for row in tables(SECTIONS["memory"])[0]}
    names = {"Strawberry's DataLoader": "strawberry", "async-batcher": "async_batcher", "microbatch, `submit`": "submit"}  # fmt: skip
    for name, share, latency, size in shown:
        if "submit_nowait" in name:
            assert share.split(" / ") == [cpu["submit_nowait"], cpu["submit_many"]]
            continue
        label = names.get(name, name)
        assert share == cpu[label], name
        assert latency.replace(",", "").removesuffix(" us") == alone[label].replace("-", ""), name
        assert size.replace(",", "") == each.get(label, ""), name
    assert len(shown) == 8


#: Rows of the README's table of speed: where their figures stand among the goals.
SPEED = {
    "`await submit` in a task each, batch 100": [
        "a task each, batch 100",
        "1,000 callers, batch 100",
    ],
    "batch 10": ["a task each, batch 10", "1,000 callers, batch 10"],
    "batch 1": ["a task each, batch 1", "1,000 callers, batch 1"],
    "`gather` over `submit_nowait`": ["gather over submit_nowait"],
    "`submit_many`, chunks of 100": ["submit_many, 50,000 items in chunks of 100"],
    "trio": ["trio, batch 100", "trio, batch 1"],
    "a lone caller, p50": ["lone caller at default settings, p50"],
    "bytes per waiting caller": ["bytes per waiting caller, of a bare task and future"],
}


def test_the_readmes_speed_is_that_of_the_goals():
    """Two pages with two figures for one thing are worse than one page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [rows] = tables(text.split("\n## Speed\n")[1].split("\n## ")[0])
    [goals] = tables(SECTIONS["goals"])
    reached = {what: (cell.split(" (")[0], peer) for what, _, cell, _, peer in goals}
    left = dict(SPEED)
    for what, ours, peer in rows:
        label = next(label for label in left if what.startswith(label))
        figures = [reached[goal] for goal in left.pop(label)]
        assert ours.split(" / ") == [figure for figure, _ in figures], what
        if not peer.startswith("none "):
            name = peer.split()[0]
            expected = " / ".join(one.removeprefix(f"{name} ") for _, one in figures)
            assert peer == f"{name} {expected}", what
    assert left == {}
