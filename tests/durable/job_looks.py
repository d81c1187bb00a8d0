"""Looks at the jobs in a file, beside whoever works on it: whether what is counted is there, and how it must end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

#: How items end, as a job's row counts them, and the states of their ranges.
ENDS = {"succeeded": 3, "failed": 7, "skipped": 4, "cancelled": 5, "expired": 6}
#: Lives that others see, before the end.
LIVING = (1, 2, 3)
#: States of what has not ended.
WAITING = (0, 1, 2, 8)


def check_open(connection: sqlite3.Connection) -> list[str]:
    """Count every job's items in one look; return what is wrong: any process may do that at any time."""
    faults: list[str] = []
    connection.execute("BEGIN")
    found = connection.execute(
        f"""SELECT id, life, kept, outcome, stop, chore, paused, total, {", ".join(ENDS)}
        FROM microbatch_jobs"""
    ).fetchall()
    for job, life, kept, outcome, stop, chore, paused, total, *counts in found:
        here: dict[int, int] = dict(
            connection.execute(
                "SELECT state, sum(count) FROM microbatch_ranges WHERE job = ? GROUP BY state",
                (job,),
            ).fetchall()
        )
        about = f"job {job} in life {life}, {kept=} {stop=} {chore=}: {total=} {counts=} {here=}"
        waiting = sum(here.get(state, 0) for state in WAITING)
        if life in (0, 5):
            if set(here) - {8} and not life:
                faults.append(f"seen before it was shown: {about}")
            continue
        if (life != 4 or kept) and counts != [here.get(state, 0) for state in ENDS.values()]:
            faults.append(f"its counts are not what is there: {about}")
        if total != sum(counts) + waiting:
            faults.append(f"it does not add up: {about}")
        if (life == 4) != (not waiting):
            faults.append(f"ended and not: {about}")
        if outcome != (outcome_of(*counts) if life == 4 else None):
            faults.append(f"{outcome=}: {about}")
        if life == 3 and any(here.get(state) for state in (0, 1, 8)) and chore != 2:
            faults.append(f"nobody ends what has not begun: {about}")
        if life in (1, 2) and here.get(8) and chore != 1:
            faults.append(f"nobody makes it ready: {about}")
        faults += [f"{fault}: {about}" for fault in _lane_faults(connection, job, life, paused)]
    connection.execute("COMMIT")
    return faults


def _lane_faults(connection: sqlite3.Connection, job: int, life: int, paused: int) -> Iterator[str]:
    lanes = connection.execute(
        "SELECT shut, open FROM microbatch_lanes WHERE lane = ?", (job,)
    ).fetchall()
    if len(lanes) != (life in LIVING):
        yield f"{lanes=}"
    for shut, is_open in lanes:
        if bool(shut) == bool(is_open) or bool(shut & 2) != (life == 3):
            yield f"{shut=} {is_open=}"
        if life != 3 and bool(shut & 1) != bool(paused):
            yield f"{shut=} {paused=}"


def outcome_of(succeeded: int, failed: int, skipped: int, cancelled: int, expired: int) -> str:
    """Return the outcome of a job whose items have ended so: the table, told once more."""
    if cancelled or expired:
        return "cancelled" if cancelled else "expired"
    if failed:
        return "partially_succeeded" if succeeded + skipped else "failed"
    return "succeeded"


#: Every change of a life, told once more; None is a job that is gone.
NEXT: dict[int, set[int | None]] = {
    0: {1, 5},
    1: {2, 3, 4},
    2: {3, 4},
    3: {4},
    4: {5},
    5: {None},
}


def lives_after(life: int) -> set[int | None]:
    """Return all lives that one transaction may lead to, or several."""
    found: set[int | None] = set()
    new = NEXT[life]
    while new:
        found |= new
        new = {after for one in new if one is not None for after in NEXT[one]} - found
    return found
