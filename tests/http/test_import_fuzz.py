"""Whatever comes as an import is answered: accepted or refused, and nothing of it hangs or is a fault."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from http_jobs_support import clients_of
from http_support import User, Users, api_of
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run

from microbatch.durable import DurableQueue

pytestmark = pytest.mark.parametrize("backend_name", ["asyncio"])

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["name", "age", "x"]), inner),
    max_leaves=6,
)
LINES = st.one_of(
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=30),
    st.sampled_from(
        [b"[" * 5_000, b'{"name":"\\ud800"}', b'"', b"a,b", b'a,"b', b"\r", b"name,age", b"\x00"]
    ),
)
TEXTS = st.lists(LINES, max_size=6).map(b"\n".join)
BODIES = st.one_of(
    TEXTS, TEXTS.map(gzip.compress), st.tuples(TEXTS.map(gzip.compress), st.integers(0, 40)).map(lambda t: t[0][: t[1]])
)  # fmt: skip
TYPES = st.sampled_from(["application/x-ndjson", "text/csv"])
REQUESTS = st.tuples(BODIES, TYPES, st.booleans(), st.sampled_from(["skip", "reject"]))


@settings(max_examples=20)
@given(requests=st.lists(REQUESTS, max_size=15))
def test_no_body_is_a_fault(backend_name: str, requests: list[Any]) -> None:
    """Bytes, JSON, CSV, gzip, in any mixture: 202, 400, 413 or 422, and each row has its place in the job."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with DurableQueue(Path(folder) / "q", item_type=User) as queue:
                api = api_of(Users(), queue=queue, max_import_bytes=20_000, max_open_jobs=100)
                async with api, clients_of(api) as (ann, _):
                    for body, kind, zipped, mode in requests:
                        headers = {"content-type": kind}
                        headers |= {"content-encoding": "gzip"} if zipped else {}
                        sent = await ann.post(
                            f"/users/import?mode={mode}", content=body, headers=headers
                        )
                        assert sent.status_code in {202, 400, 413, 422}, sent.text
                        if sent.status_code == 202 and mode == "reject":
                            assert sent.json()["errors"] == {}

    run(backend_name, main, real_time=True)
