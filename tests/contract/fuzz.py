"""Looks for programs that break a law: ``python tests/contract/fuzz.py --loop trio --first 0 --count 5000``.

With ``--seed`` one program runs; ``--shrink`` makes it as small as it can be and prints it.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from fuzz_check import problems  # noqa: E402
from fuzz_program import Program, drawn, shrunk  # noqa: E402
from fuzz_run import LOOPS, recorded  # noqa: E402

import microbatch  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Collection


def faults(program: Program, loop: str) -> list[str]:
    """Run the program and return what is wrong."""
    return problems(recorded(program, loop))


def first_fault(
    loop: str, first: int, count: int, *, without: Collection[str] = ()
) -> tuple[int, list[str]] | None:
    """Return the first seed from ``first`` on whose program breaks a law, and what it breaks."""
    for seed in range(first, first + count):
        if found := faults(drawn(seed, without=without), loop):
            return seed, found
    return None


def smallest(program: Program, loop: str, tries: int = 2000) -> Program:
    """Return a smaller program that breaks the same law."""
    law = kind(faults(program, loop)[0])

    def fails(smaller: Program) -> bool:
        return law in {kind(line) for line in faults(smaller, loop)}

    return shrunk(program, fails, tries)


def never_ends(*_: object) -> None:
    raise TimeoutError("a program takes 20 s of real time")


def kind(line: str) -> str:
    """Return what is wrong without its numbers."""
    return re.sub(r"\d+(\.\d+)?", "#", line)[:160]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--stop", action="store_true", help="stop at the first")
    parser.add_argument("--without", nargs="*", default=())
    arguments = parser.parse_args()
    if arguments.seed is not None:
        program = drawn(arguments.seed, without=arguments.without)
        if arguments.shrink and faults(program, arguments.loop):
            program = smallest(program, arguments.loop)
        print(program, *faults(program, arguments.loop), sep="\n")
        return
    print("the laws of", Path(microbatch.__file__).parent.parent)
    kinds: Counter[str] = Counter()
    began = time.perf_counter()
    signal.signal(signal.SIGALRM, never_ends)
    for seed in range(arguments.first, arguments.first + arguments.count):
        signal.setitimer(signal.ITIMER_REAL, 20, 1)  # again: a finalizer may swallow it
        found = faults(drawn(seed, without=arguments.without), arguments.loop)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for line in {kind(line): line for line in found}.values():
            kinds[kind(line)] += 1
            if kinds[kind(line)] <= 4:
                print(seed, line[:300], flush=True)
        if found and arguments.stop:
            break
    print(
        *kinds.items(),
        f"{arguments.count / (time.perf_counter() - began):.0f} programs/s",
        sep="\n",
    )
    sys.exit(1 if kinds else 0)


if __name__ == "__main__":
    main()
