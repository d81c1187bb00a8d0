"""Blobs: payloads of consecutive items in one row, with their lengths; results in the same manner."""

from __future__ import annotations

import json
from bisect import bisect_right
from contextlib import suppress
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from . import sql
from .ranges import ended_well
from .records import Range

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from .records import Step

#: Bytes in a blob, or one item; and items in it.
BLOB_BYTES = 65_536
BLOB_ITEMS = 1_000

#: Bytes of payloads in a claim, or one item.
CLAIM_BYTES = 4 << 20

#: A blob is written anew if less than this part of its bytes is needed.
NEEDED = 4


def cut_blobs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut consecutive values into blobs; yield where each starts and stops."""
    ends = list(accumulate(lengths))
    start = before = 0
    while start < len(ends):
        stop = bisect_right(ends, before + BLOB_BYTES, start, min(len(ends), start + BLOB_ITEMS))
        stop = max(stop, start + 1)
        yield start, stop
        start, before = stop, ends[stop - 1]


def store(
    queue: int, first: int, payloads: Sequence[bytes], traces: Sequence[bytes | None] | None
) -> Generator[Step, Any, None]:
    """Write the payloads of consecutive items."""
    lengths = list(map(len, payloads))
    for start, stop in cut_blobs(lengths):
        joined = payloads[start] if stop - start == 1 else b"".join(payloads[start:stop])
        row = (first + start, stop - start, queue, _as_json(lengths[start:stop]))
        if traces is not None and any(traces[start:stop]):
            sent = json.dumps([t if t is None else t.hex() for t in traces[start:stop]])
            yield sql.STORE_TRACED, (*row, sent, joined), False
        else:
            yield sql.STORE, (*row, joined), False


def _as_json(lengths: Sequence[int]) -> str:
    if lengths[0] == lengths[-1] and lengths.count(lengths[0]) == len(lengths):
        return f"[{','.join([str(lengths[0])] * len(lengths))}]"  # often they are all alike
    return f"[{','.join(map(str, lengths))}]"


class Blob:
    """A blob's row, opened.

    Attributes:
        first: The first item's id.
        lengths: Of each payload; None where it was dropped.
        ends: Where each payload ends.
        traces: The contexts of the items, as JSON text; None without any.
        payloads: The bytes; None until they are read.
    """

    __slots__ = ("ends", "first", "lengths", "payloads", "traces")

    def __init__(
        self, first: int, lengths: str, traces: str | None, payloads: bytes | None
    ) -> None:
        self.first = first
        self.lengths: list[int | None] = []
        self.ends: list[int] = []
        # A damaged row holds no item that anybody could find.
        with suppress(TypeError, ValueError):
            read = json.loads(lengths)
            self.ends = list(accumulate(length or 0 for length in read))
            self.lengths = read
        self.traces = traces
        self.payloads = payloads

    def sent(self, start: int, stop: int) -> list[bytes | None]:
        """Return the contexts of some items. Whoever damaged them has cost links, and no item."""
        if self.traces is not None:
            try:
                found = json.loads(self.traces)[start:stop]
                contexts = [None if one is None else bytes.fromhex(one) for one in found]
            except (TypeError, ValueError, LookupError):
                contexts = []
            if len(contexts) == stop - start:
                return contexts
        return [None] * (stop - start)


class Taken(NamedTuple):
    """Payloads of some items, in the order asked for.

    Attributes:
        payloads: The first ones, as many as there was room for; ``MISSING`` for one that is not there.
        traces: Their contexts; None if none of them has one.
    """

    payloads: list[bytes]
    traces: list[bytes | None] | None


#: Stands for a payload that a damaged file has lost. No value is encoded as nothing: no decoder takes it, and
#: the item fails alone.
MISSING = b""


class PayloadReader:
    """Reads payloads, each blob once."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._blobs: dict[int, Blob] = {}

    def take(self, wanted: Iterable[tuple[int, int]], room: int) -> Generator[Step, Any, Taken]:
        """Read the payloads of items.

        Args:
            wanted: First ids and counts, in the order of the answer.
            room: Bytes at most; the first item comes whatever its size.
        """
        payloads: list[bytes] = []
        traces: list[bytes | None] = []
        for first, count in wanted:
            at, end = first, first + count
            while at < end:
                blob = yield from self._blob(at, end - 1)
                if blob is None:
                    payloads.append(MISSING)
                    traces.append(None)
                    at += 1
                    continue
                start, stop = at - blob.first, min(end - blob.first, len(blob.lengths))
                before = blob.ends[start - 1] if start else 0
                full = blob.ends[stop - 1] - before > room
                if full:
                    stop = bisect_right(blob.ends, room + before, start, stop)
                    if not payloads:
                        stop = max(stop, start + 1)
                if stop > start:
                    yield from self._open(blob)
                    self._slice(blob, start, stop, payloads, traces)
                    room -= blob.ends[stop - 1] - before
                if full:
                    return Taken(payloads, traces if any(traces) else None)
                at = blob.first + stop
        return Taken(payloads, traces if any(traces) else None)

    def _slice(
        self,
        blob: Blob,
        start: int,
        stop: int,
        payloads: list[bytes],
        traces: list[bytes | None],
    ) -> None:
        content, at = blob.payloads, blob.ends[start - 1] if start else 0
        assert content is not None  # noqa: S101 - it is open
        if len(content) != blob.ends[-1]:
            payloads += [MISSING] * (stop - start)
        elif stop - start == len(blob.lengths) == 1:
            payloads.append(content)
        else:
            for end in blob.ends[start:stop]:
                payloads.append(content[at:end])
                at = end
        traces += blob.sent(start, stop)

    def _blob(self, at: int, last: int) -> Generator[Step, Any, Blob | None]:
        """Return the blob with an item, None if there is none; read with it those up to another item."""
        blob = self._known(at)
        if blob is None:
            for first, lengths, traces, payloads in (yield sql.BLOBS, (at, last), False):
                if first not in self._blobs:
                    self._blobs[first] = Blob(first, lengths, traces, payloads)
            self._firsts = sorted(self._blobs)
            blob = self._known(at)
        return blob

    def _known(self, at: int) -> Blob | None:
        index = bisect_right(self._firsts, at)
        if not index:
            return None
        blob = self._blobs[self._firsts[index - 1]]
        return blob if at < blob.first + len(blob.lengths) else None

    def _open(self, blob: Blob) -> Generator[Step, Any, None]:
        if blob.payloads is None:
            ((blob.payloads,),) = yield sql.PAYLOADS, (blob.first,), False


# Keeping no more than is needed


def release(first: int, last: int) -> Generator[Step, Any, None]:
    """Remove the blobs with some ids that no item needs any more."""
    yield sql.RELEASE, (first, last), False


def thin(at: int) -> Generator[Step, Any, bool]:
    """Drop what is not needed from the blob with an item, if little of it is; return whether it was.

    Never a second time: then a payload would be written more than twice.
    """
    found = yield sql.BLOB_AT, (at,), False
    if not found:
        return False
    first, count, text, _ = found[0]
    lengths: list[int | None] = json.loads(text)
    if first + count <= at or None in lengths:
        return False
    rows = yield sql.RANGES_OF, (json.dumps([[first, first + count - 1]]),), False
    needed = [False] * count
    for row in rows:
        one = Range(*row)
        if not ended_well(one):
            start, stop = max(0, one.first - first), min(count, one.first + one.count - first)
            needed[start:stop] = [True] * max(0, stop - start)
    kept = sum(length or 0 for length, need in zip(lengths, needed, strict=True) if need)
    if kept * NEEDED >= sum(length or 0 for length in lengths):
        return False
    ((payloads,),) = yield sql.PAYLOADS, (first,), False
    left, end = [], 0
    for index, length in enumerate(lengths):
        start, end = end, end + (length or 0)
        if needed[index]:
            left.append(payloads[start:end])
        else:
            lengths[index] = None
    yield sql.THIN, (json.dumps(lengths), b"".join(left), first), False
    return True


# Results


def store_results(
    done: Sequence[int], results: Sequence[bytes | None]
) -> Generator[Step, Any, None]:
    """Write results of items: a row for each run of consecutive ones that have one."""
    rows = []
    for start, stop in _with_results(done, results):
        chosen = [one for one in results[start:stop] if one is not None]
        lengths = list(map(len, chosen))
        for begin, end in cut_blobs(lengths):
            content = b"".join(chosen[begin:end])
            rows.append((done[start + begin], end - begin, _as_json(lengths[begin:end]), content))
    if len(rows) == 1:
        yield sql.RESULT, rows[0], False
    elif rows:
        yield sql.RESULT, rows, True


def _with_results(
    done: Sequence[int], results: Sequence[bytes | None]
) -> Iterator[tuple[int, int]]:
    """Yield where runs of consecutive items that have results start and stop."""
    start, total = 0, len(done)
    if total and done[-1] - done[0] == total - 1 and None not in results:
        yield 0, total  # ascending ids without a gap: the usual case takes no step for each
        return
    while start < total:
        if results[start] is None:
            start += 1
            continue
        stop, offset = start + 1, done[start] - start
        while stop < total and results[stop] is not None and done[stop] == stop + offset:
            stop += 1
        yield start, stop
        start = stop


def stored_results(wanted: Sequence[tuple[int, int]]) -> Generator[Step, Any, dict[int, bytes]]:
    """Return the results of items, by id, of those that have one."""
    found: dict[int, bytes] = {}
    rows = yield sql.RESULTS_OF, (json.dumps(wanted),), False
    for first, _, lengths, content in rows:
        at = 0
        for number, length in enumerate(json.loads(lengths), first):
            found[number] = content[at : at + length]
            at += length
    return found


def remove_results(first: int, last: int) -> Generator[Step, Any, None]:
    """Remove the results of the items from one to another id."""
    yield sql.RESULTS_WITHIN, (first, last, last), False
    for start, text, content in (yield sql.RESULTS_AROUND, (first, last, first), False):
        lengths, at = json.loads(text), 0
        kept: dict[int, bytes] = {}
        for number, length in enumerate(lengths, start):
            if not first <= number <= last:
                kept[number] = content[at : at + length]
            at += length
        yield sql.REMOVE_RESULT, (start,), False
        yield from store_results(list(kept), list(kept.values()))


def errors_of(wanted: Sequence[tuple[int, int]]) -> Generator[Step, Any, dict[int, bytes]]:
    """Return the errors of items, by id, of those that have one."""
    rows = yield sql.ERRORS_OF, (json.dumps(wanted),), False
    return dict(rows)


def remove_errors(found: Iterable[tuple[int, int]]) -> Generator[Step, Any, None]:
    """Remove the errors of items, given as first and last ids."""
    rows = list(found)
    if len(rows) == 1:
        yield sql.REMOVE_ERRORS, rows[0], False
    elif rows:
        yield sql.REMOVE_ERRORS, rows, True
