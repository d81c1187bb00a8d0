"""A program for the fuzzer: settings and operations, drawn from one seed.

A seed is the whole program, on every machine and every Python. ``source`` prints a program as Python, so that a
shrunken one can be kept as a test; ``shrunk`` drops what a failure does not need.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

KINDS = ("list", "list", "list", "resolve", "generate")
#: What an item's handling ends with, one word for each attempt; the last one stands for all later ones.
FATES = (
    "error",
    "flaky",
    "again",
    "never",
    "after",
    "plain",
    "skipped",
    "hollow",
    "rubbish",
    "busy",
    "lull",
)
#: What the handler does with a batch whose first item says so.
WHIMS = (
    "raise",
    "flaky",
    "busy",
    "base",
    "short",
    "long",
    "text",
    "mapping",
    "number",
    "awaitables",
    "none",
)
WHIMS_IN_TIME = ("hang", "stubborn", "cleaning", "crawl", "deadlock")
#: Five ways to close, two of them in two forms.
WAYS = ("drain", "deadline", "cancelled", "leave", "fail", "leave_cancelled")


@dataclass(frozen=True, eq=False)
class Item:
    """One submission: what it is, and what shall become of it."""

    id: int
    part: int = 0
    key: int = 0
    weight: float = 1
    priority: float = 0
    fates: tuple[str, ...] = ("ok",)
    whim: str = "list"
    seconds: float = 0.0  # how long a batch takes that it leads
    bad: str = ""  # the callback that raises for it
    inside: str = (
        ""  # what a callback does that is asked about it: "cancel" all others, submit a "child"
    )
    child: Item | None = (
        None  # submitted by the handler, where the whim is "crawl", or by the callback
    )

    def __repr__(self) -> str:
        return source(self, "id")


@dataclass(frozen=True)
class Settings:
    """Plain values; ``fuzz_run`` makes a Batcher's arguments of them."""

    kind: str = "list"  # "resolve", "generate"
    size: int = 3
    adaptive: bool = False
    wait: float = 0.0
    slots: int = 1
    room: int | None = None
    reject: bool = False
    batch_weight: float | None = None
    room_weight: float | None = None
    parts: bool = False
    part_slots: int | None = None
    coalesce: bool = False
    attempts: int = 0  # 0: no retry
    holds: int = 10
    initial: float = 1.0
    maximum: float = 60.0
    retry_timeouts: bool = False
    timeout: float | None = None
    abandon: bool = False
    contexts: bool = False
    entered: bool = True

    def __repr__(self) -> str:
        return source(self)


@dataclass(frozen=True)
class Program:
    settings: Settings
    ops: tuple[Any, ...]
    way: str = "drain"  # how it closes in the end, or where "close" stands in the operations
    seconds: float = 0.0  # the way's: until the deadline or the cancellation
    quiet: bool = True  # time for everything to end by itself before the close
    looks: bool = False  # stats() after each operation
    seed: int | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        ops = "".join(f"        {one!r},\n" for one in self.ops)
        return (
            f"Program(\n    {self.settings!r},\n    ops=(\n{ops}    ),\n"
            f"    way={self.way!r}, seconds={self.seconds}, quiet={self.quiet}, looks={self.looks},\n)"
        )


def source(value: Any, *always: str) -> str:
    """Return the Python for a dataclass, without the fields that are as usual."""
    shown = [
        f"{one.name}={getattr(value, one.name)!r}"
        for one in fields(value)
        if one.name in always or getattr(value, one.name) != one.default
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


class _Drawer:
    def __init__(self, seed: int, without: Collection[str]) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.items = 0
        self.without = without
        self.trouble = self.random.choice([0.0, 0.1, 0.1, 0.4])
        self.crowd = self.random.random() < 0.4
        self.urgent = self.random.random() < 0.6
        self.settings = self.draw_settings()

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def draw_settings(self) -> Settings:
        pick, chance = self.random.choice, self.chance
        weighed = chance(0.3)
        parts = chance(0.35)
        abandon = chance(0.25)
        room = pick([1, 2, 3, 3, 4, 6]) if self.crowd else pick([None, None, 3, 5, 8])
        return Settings(
            kind=pick(["list", "resolve", "resolve", "generate"] if abandon else KINDS),
            size=pick([1, 2, 3, 4, 8]),
            adaptive=chance(0.05),
            wait=pick([0.0, 0.0, 0.0, 0.5, 2.0]),
            slots=pick([1, 1, 2, 3]),
            room=room,
            reject=chance(0.5),
            batch_weight=pick([None, 3, 6]) if weighed else None,
            room_weight=pick([5, 9]) if weighed and (room is None or chance(0.5)) else None,
            parts=parts,
            part_slots=pick([None, 1, 2]) if parts else None,
            coalesce=chance(0.2),
            attempts=pick([2, 3]) if chance(0.35) else 0,
            holds=pick([2, 10]),
            initial=pick([0.5, 1.0]),
            maximum=pick([1.5, 60.0]),
            retry_timeouts=chance(0.3),
            timeout=pick([1.6, 3.1]) if chance(0.35) else None,
            abandon=abandon,
            contexts=chance(0.25),
            entered=chance(0.6),
        )

    def item(self, *, leaf: bool = False) -> Item:
        pick, settings = self.random.choice, self.settings
        number, self.items = self.items, self.items + 1
        whims = WHIMS + WHIMS_IN_TIME[0 if settings.timeout else 2 :]
        whim = pick(whims) if self.chance(self.trouble) else "list"
        if whim in self.without or (leaf and whim in {"crawl", "deadlock"}):
            whim = "list"
        fates: tuple[str, ...] = ("ok",)
        if self.chance(self.trouble):
            fates = tuple(pick(FATES) for _ in range(self.random.randint(1, 2)))
            fates = tuple("ok" if fate in self.without else fate for fate in fates)
            fates += ("ok",) if self.chance(0.5) else ()
        inside = pick(["cancel", "child"]) if self.chance(self.trouble / 8) and not leaf else ""
        return Item(
            id=number,
            part=pick([0, 0, 1, 2]),
            key=pick([0, 1, 2, 3]),
            weight=pick([0, 1, 1, 2, 3, 0.1, 0.2, 0.7, 5, 9]),
            priority=pick([0, 0, 0, 1, 2]) if self.urgent else 0,
            fates=fates,
            whim=whim,
            seconds=pick([0.0, 0.0, 0.25, 0.5, 1.0]),
            bad=pick(["weigh", "partition", "coalesce"]) if self.chance(self.trouble / 8) else "",
            inside=inside,
            child=self.item(leaf=True) if whim == "crawl" or inside == "child" else None,
        )

    def op(self) -> Iterator[Any]:
        number = self.random.randrange(100)
        for share, name in SHARES:
            if number < share:
                yield from getattr(self, name)()
                return
            number -= share

    def one(self) -> Iterator[Any]:
        kind = self.random.choice(
            ["submit", "submit", "nowait", "nowait", "held", "dropped", "timed"]
        )
        if kind == "timed":
            yield ("timed", self.item(), self.random.choice([0.0, 0.3, 1.3]))
        else:
            yield (kind, self.item())

    def burst(self) -> Iterator[Any]:
        for _ in range(self.random.randint(2, 6)):
            yield from self.one()

    def rush(self) -> Iterator[Any]:
        """All of a crowd go at once, and others come in the same turn."""
        yield from self.burst()
        if self.chance(0.5):
            yield from self.turns()
            yield from self.burst()
        yield ("cancel_all", self.random.choice(["all", "unseen", "unseen"]))
        for _ in range(self.random.randint(1, 4)):
            yield (self.random.choice(["nowait", "held", "submit"]), self.item())

    def many(self) -> Iterator[Any]:
        kind = self.random.choice(["many", "report"])
        yield (kind, tuple(self.item() for _ in range(self.random.randint(0, 7))))

    def cancel(self) -> Iterator[Any]:
        yield ("cancel", self.random.randrange(20))

    def cancel_all(self) -> Iterator[Any]:
        kinds = ["all", "odd", "unseen", "unseen", "seen", "lead", "lead"]
        yield ("cancel_all", self.random.choice(kinds))
        if self.chance(0.6):  # somebody comes in the same turn
            yield from self.one()

    def turns(self) -> Iterator[Any]:
        yield ("turns", self.random.choice([1, 1, 2, 3, 16]))

    def sleep(self) -> Iterator[Any]:
        yield ("sleep", self.random.choice([0.0, 0.1, 0.25, 0.6, 1.0, 4.0]))

    def flush(self) -> Iterator[Any]:
        yield ("flush",)

    def cancel_flush(self) -> Iterator[Any]:
        yield ("cancel_flush",)

    def look(self) -> Iterator[Any]:
        yield ("look",)

    def program(self) -> Program:
        ops: list[Any] = []
        for _ in range(self.random.choice([4, 8, 14, 22])):
            ops.extend(self.op())
        ways = WAYS if self.settings.entered else WAYS[:3]
        quiet = self.chance(0.4)
        if not quiet and self.chance(0.5):  # what comes behind it meets a closing batcher
            ops.insert(self.random.randint(len(ops) // 2, len(ops)), ("close",))
        return Program(
            self.settings,
            tuple(ops),
            way=self.random.choice(ways),
            seconds=self.random.choice([0.0, 0.07, 0.57, 2.07]),
            quiet=quiet,
            looks=self.chance(0.3),
            seed=self.seed,
        )


#: Of a hundred operations.
SHARES = [
    (26, "one"),
    (12, "burst"),
    (5, "rush"),
    (6, "many"),
    (8, "cancel"),
    (7, "cancel_all"),
    (15, "turns"),
    (12, "sleep"),
    (4, "flush"),
    (1, "cancel_flush"),
    (4, "look"),
]


def drawn(seed: int, *, without: Collection[str] = ()) -> Program:
    """Return the seed's program; ``without`` makes ordinary the fates and whims that it names."""
    return _Drawer(seed, without).program()


def shrunk(program: Program, fails: Callable[[Program], bool], tries: int = 2000) -> Program:
    """Return a smaller program that still fails: fewer operations, then ordinary settings and items."""
    progress = True
    while progress and tries > 0:
        progress = False
        for smaller in _smaller(program):
            tries -= 1
            if fails(smaller):
                program, progress = smaller, True
                break
            if tries <= 0:
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    ops = program.ops
    length = len(ops)
    while length := length // 2:
        for start in range(0, len(ops), length):
            yield replace(program, ops=ops[:start] + ops[start + length :])
    usual = Program(Settings(), ())
    for name in ("looks", "quiet", "seconds", "way"):
        if getattr(program, name) != getattr(usual, name):
            yield replace(program, **{name: getattr(usual, name)})
    for one in fields(Settings):
        if getattr(program.settings, one.name) != one.default:
            yield replace(program, settings=replace(program.settings, **{one.name: one.default}))
    for index, op in enumerate(ops):
        for smaller in _smaller_ops(op):
            yield replace(program, ops=(*ops[:index], smaller, *ops[index + 1 :]))


def _smaller_ops(op: Any) -> Iterator[Any]:
    if op[0] in {"many", "report"}:
        for index, item in enumerate(op[1]):
            yield (op[0], op[1][:index] + op[1][index + 1 :])
            for smaller in _smaller_items(item):
                yield (op[0], (*op[1][:index], smaller, *op[1][index + 1 :]))
    elif len(op) > 1 and isinstance(op[1], Item):
        for smaller in _smaller_items(op[1]):
            yield (op[0], smaller, *op[2:])


def _smaller_items(item: Item) -> Iterator[Item]:
    for one in fields(Item):
        if one.name != "id" and getattr(item, one.name) != one.default:
            if one.name == "child" and (item.whim == "crawl" or item.inside == "child"):
                continue
            yield replace(item, **{one.name: one.default})
