"""Bodies of every kind, drawn by Hypothesis: no 500, no hang, nothing left behind."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from http_support import User, Users, api_of, call
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from microbatch.http import BatchAPI

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(["a", "b", "taken"])
ITEMS = (
    st.fixed_dictionaries({"name": NAMES}, optional={"age": st.integers(0, 9), "id": NAMES})
    | VALUES
)
OPERATIONS = (
    st.fixed_dictionaries(
        {"method": st.sampled_from(["create", "update", "delete", "read", "fly"])},
        optional={
            "id": NAMES | VALUES, "data": ITEMS, "ref": st.text(max_size=3) | VALUES,
            "collection": st.sampled_from(["users", "other", 5]),
        },
    )
    | VALUES
)  # fmt: skip
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.booleans() for name in ("stop_on_error", "validate_only", "ordered", "atomic")},
        "mode": st.sampled_from(["skip", "reject", "odd"]),
        "async": st.sampled_from([None, False, True]),
        "more": VALUES,
    },
)
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "items": st.lists(ITEMS, max_size=5) | VALUES,
        "operations": st.lists(OPERATIONS, max_size=5) | VALUES,
        "updates": st.lists(OPERATIONS, max_size=3),
        "ids": st.lists(NAMES | VALUES, max_size=5) | VALUES,
        "options": OPTIONS | VALUES,
    },
)
TEXTS = (
    (ENVELOPES | ITEMS | VALUES).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=40)
    | st.lists(ITEMS, max_size=4).map(
        lambda rows: b"\n".join(json.dumps(row).encode() for row in rows)
    )
    | st.text(alphabet='name,age"\r\n;=+-@', max_size=40).map(str.encode)
    | st.integers(1, 3_000).map(lambda depth: b"[" * depth)
    | st.integers(1, 3_000).map(lambda depth: b'{"items":' * depth)
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a request: where it goes, its body, how that is cut, packed and perhaps damaged."""
    body = draw(TEXTS)
    headers = {
        "content-type": draw(
            st.sampled_from(["application/json"] * 5 + ["text/csv", "application/x-ndjson"])
        )
    }
    if draw(st.booleans()):
        headers["content-encoding"] = "gzip"
        body = draw(st.sampled_from([gzip.compress(body, mtime=0), body]))
    if body and draw(st.integers(0, 5)) == 0:
        place = draw(st.integers(0, len(body) - 1))
        body = body[:place] + draw(st.binary(max_size=3)) + body[place + 1 :]
    cut = draw(st.integers(0, len(body)))
    headers["prefer"] = draw(
        st.sampled_from(["", "return=minimal", "respond-async, wait=1", "wait=;,=\x7f"])
    )
    headers["idempotency-key"] = draw(st.sampled_from(["", '"k"', "k", '"', "\x7f"]))
    if not headers["idempotency-key"] or draw(st.booleans()):
        del headers["idempotency-key"]
    path = draw(
        st.sampled_from(
            [
                "/users",
                "/users/batch",
                "/users/batch-get",
                "/users/batch-delete",
                "/batch",
                "/users/a",
            ]
        )
    )
    method = (
        "PATCH"
        if path == "/users/a"
        else draw(st.sampled_from(["POST", "POST", "PATCH", "DELETE"]))
    )
    return {"path": path, "method": method, "headers": headers, "pieces": [body[:cut], body[cut:]]}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(programs=st.lists(requests(), min_size=1, max_size=6))
def test_no_body_makes_an_api_fail(backend: str, programs: list[dict[str, Any]]) -> None:
    """Each is answered, by a status below 500 and in a form that its media type says; then all is at rest."""

    async def send_all() -> None:
        users = Users()
        users.rows = {"0": User(id="0", name="taken")}
        api = api_of(users)
        async with api:
            with anyio.fail_after(60):
                for program in programs:
                    answer = await call(api, **program)
                    assert answer.done
                    assert 200 <= answer.status < 500, (program, answer.body)
                    if answer.body:
                        assert answer.json() is not None or answer.status < 300
            assert at_rest(api)

    anyio.run(send_all, backend=backend)


def at_rest(api: BatchAPI) -> bool:
    parts = api._parts
    batchers = [one for collection in parts.collections.values() for one in collection.own.values()]
    return len(parts.detached) == 0 and all(
        one.stats().pending == 0 for one in [*batchers, parts.atomic]
    )
