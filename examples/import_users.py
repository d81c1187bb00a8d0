"""Import users from a CSV file: checked, without duplicates, in batches, in flat memory.

    python examples/import_users.py [--count 100000] [--duplicates skip|update] [users.csv]

Without a file it makes one, with duplicates and broken rows. The rows stream from the file through
the checks into SQLite, a transaction for each batch. What failed is in ``failed.csv``, with the
reason in a column of its own: mend it there, and import that file in the same way.
"""

import argparse
import csv
import random
import resource
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import anyio
import msgspec
from tqdm import tqdm

from microbatch import ItemError, Skipped
from microbatch.files import read_rows, write_rows
from microbatch.layers import bisecting, validated
from microbatch.streaming import OutcomeStream, Progress, map_batches

SCHEMA = """PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS user (
    email TEXT PRIMARY KEY, name TEXT NOT NULL, age INTEGER, country TEXT) WITHOUT ROWID"""
INSERT = """INSERT INTO user VALUES (:email, :name, :age, :country) ON CONFLICT DO UPDATE
    SET name = excluded.name, age = excluded.age, country = excluded.country"""
FIND = "SELECT email FROM user WHERE email IN (SELECT value FROM json_each(?))"
COLUMNS = ["email", "name", "age", "country"]


class User(msgspec.Struct):
    """What a row must be. An empty age is None."""

    email: Annotated[str, msgspec.Meta(pattern=r"^[^@\s]+@[^@\s]+\.[a-z]+$")]
    name: Annotated[str, msgspec.Meta(min_length=1)]
    age: Annotated[int, msgspec.Meta(ge=0, le=130)] | None
    country: Annotated[str, msgspec.Meta(pattern="^[A-Z]{2}$")]


def problem(user: User, message: str, code: str) -> ItemError:
    """Return an error that has the row, so that it can be written down."""
    return ItemError(message, code=code, details={"row": msgspec.to_builtins(user)})


def check(user: User) -> None:
    """Raise for what no type can say."""
    if user.email.endswith("@blocked.example"):
        raise problem(user, "this domain may not register", "blocked_domain")


class Users:
    """The table, and the bulk handler that writes to it."""

    def __init__(self, path: Path, duplicates: str) -> None:
        self.update = duplicates == "update"
        self.database = sqlite3.connect(path, check_same_thread=False)  # one thread at a time
        self.database.executescript(SCHEMA)

    def save(self, users: list[User]) -> list[str | Skipped]:
        """Write a batch in one transaction, and say what became of each user."""
        with self.database:  # commits, or rolls back
            emails = msgspec.json.encode([user.email for user in users]).decode()
            known = {email for (email,) in self.database.execute(FIND, (emails,))}
            results: list[str | Skipped] = []
            rows: list[dict[str, Any]] = []
            for user in users:
                is_new = user.email not in known
                known.add(user.email)
                if is_new or self.update:
                    rows.append(msgspec.to_builtins(user))
                    results.append("created" if is_new else "updated")
                else:
                    results.append(Skipped("this email is known", code="duplicate_email"))
            self.database.executemany(INSERT, rows)
        return results


async def import_file(path: Path, users: Users, total: int | None) -> Counter[str]:
    """Stream the file into the table, write down what failed, and count."""
    counts: Counter[str] = Counter()
    with tqdm(total=total, unit=" users", disable=None, leave=False) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.done - bar.n)

        handler = validated(bisecting(users.save, isolate_on=sqlite3.IntegrityError), check)
        async with map_batches(
            read_rows(path, User), handler, max_concurrency=1, total=total, on_progress=show
        ) as outcomes:
            await write_rows("failed.csv", failures(outcomes, counts))
    return counts


async def failures(outcomes: OutcomeStream[str], counts: Counter[str]) -> AsyncIterator[Any]:
    """Count every outcome, and give the rows that failed, each with its reason."""
    async for outcome in outcomes:
        counts[
            outcome.value or f"{'skipped' if outcome.skipped else 'failed'}: {outcome.code}"
        ] += 1
        if isinstance(outcome.error, ItemError) and not outcome.skipped:
            row = (outcome.error.details or {}).get("row")
            cells = row if isinstance(row, dict) else {"email": row}  # text that is no CSV at all
            yield {name: cells.get(name) for name in COLUMNS} | {"problem": str(outcome.error)}


def made_up(count: int) -> Iterator[list[str]]:
    """Yield rows as people send them: some twice, some broken. The same ones each time."""
    chance = random.Random(6)
    for number in range(count):
        known = chance.randrange(number) if number and chance.random() < 0.03 else number
        row = [f"user{known}@example.org", f"User {known}", str(18 + known % 60), "SE"]
        if chance.random() < 0.02:
            row = [
                [row[0].replace("@", " at "), *row[1:]],
                [row[0], "", *row[2:]],
                [*row[:2], "forty", row[3]],
                row[:2],
                [f"user{known}@blocked.example", *row[1:]],
            ][number % 5]
        yield row


async def main(path: Path | None, count: int, duplicates: str) -> None:
    """Make the file if there is none, import it, and sum up."""
    total = None
    if path is None:
        path, total = Path("users.csv"), count
        with path.open("w", newline="") as file:  # noqa: ASYNC230 - before anything else runs
            csv.writer(file).writerows(chain([COLUMNS], made_up(count)))
    users = Users(Path("users.sqlite"), duplicates)
    start = anyio.current_time()
    counts = await import_file(path, users, total)
    seconds = anyio.current_time() - start
    (stored,) = users.database.execute("SELECT count(*) FROM user").fetchone()
    users.database.close()

    rows = counts.total()
    print(f"{rows:,} rows in {seconds:.1f} s, {rows / seconds:,.0f} a second")
    for what, many in sorted(counts.items()):
        print(f"  {what:<26}{many:>9,}")
    failed = sum(many for what, many in counts.items() if what.startswith("failed"))
    print(f"{stored:,} users stored; {failed:,} rows to mend in failed.csv")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB of memory at most")
    if total is not None and rows != total:
        sys.exit("the counts do not match")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("file", nargs="?", type=Path)
    arguments.add_argument("--count", type=int, default=100_000)
    arguments.add_argument("--duplicates", choices=["skip", "update"], default="skip")
    given = arguments.parse_args()
    anyio.run(main, given.file, given.count, given.duplicates)
