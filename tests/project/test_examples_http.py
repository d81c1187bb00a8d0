"""The example of an API over HTTP: a server and its client, run as a user runs them."""

from __future__ import annotations

import pytest
from examples_support import output_of

PRINTED = """\
create: 207, 3 of 4 {{'duplicate_email': 1}}
the same again: replayed true, same True
update: 207, 1 of 2 {{'not_found': 1}}
mixed: 200, 3 of 3
delete: 207, 2 of 3 {{'not_found': 1}}
atomic order: 409, 0 of 2 {{'aborted': 1, 'out_of_stock': 1}}
atomic order: 200, 2 of 2
import: 202, {rows:,} of {rows:,} succeeded
its events: never back True, the last at 100 %
export: {left:,} users, gzip, under 20 bytes each True
"""


@pytest.mark.parametrize("rows", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_an_api_over_users_does_what_its_client_asks_for(tmp_path, rows):
    """Batches, an order that is all or nothing, a job with its events, an export: each as it was meant."""
    printed = output_of("users_api.py", str(rows), folder=tmp_path)
    assert printed == PRINTED.format(rows=rows, left=rows + 1)
