"""Idempotency keys: what a header may say, and what counts as the same request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch.http._keys import KEY_CHARACTERS_MAX, hash_of_parts, key_of
from microbatch.http._problem import Problem


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ('  "two words"\t', "two words"),
        (r'"a \"quoted\" \\ word"', r'a "quoted" \ word'),
        ('"k"; a=1;b="x;y" ;c', "k"),
        ("a:b/c;d,e", "a:b/c;d,e"),
        ("k" * KEY_CHARACTERS_MAX, "k" * KEY_CHARACTERS_MAX),
    ],
)
def test_a_key_is_a_string_of_structured_fields_or_plain(value: str, key: str) -> None:
    """The draft asks for quotes; many clients send none."""
    assert key_of([value]) == key


def test_a_request_without_the_header_has_no_key() -> None:
    """It is done as often as it is sent."""
    assert key_of([]) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (['"a"', '"a"'], "only one"),
        (['"a", "b"'], "quoted string"),
        (["a, b"], "quoted string"),
        (['"a'], "quoted string"),
        (['a"b'], "quoted string"),
        ([r'"a\b"'], "quoted string"),
        (['"k" x'], "quoted string"),
        (["kl\xfcg"], "quoted string"),
        (['"kl\xfcg"'], "quoted string"),
        (["a\nb"], "quoted string"),
        ([""], "quoted string"),
        (['""'], "1 to 255 characters, got 0"),
        (["k" * 256], "1 to 255 characters, got 256"),
        (['"' + '\\"' * 256 + '"'], "1 to 255 characters, got 256"),
    ],
)
def test_any_other_header_is_refused(values: list[str], said: str) -> None:
    """A key that a proxy joined or cut would belong to something else."""
    with pytest.raises(Problem) as caught:
        key_of(values)
    assert caught.value.status == 400
    assert said in str(caught.value.detail)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_every_key_that_can_be_written_is_read(key: str) -> None:
    """Whatever is in it."""
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    assert key_of([f'"{escaped}"']) == key


def test_a_long_header_is_refused_in_no_time() -> None:
    """No pattern tries what it has tried: this would last for ever."""
    for value in ('"' + "a" * 50_000, '"k"' + ";a" * 25_000 + "!", '"k"' + " " * 50_000 + "!"):
        with pytest.raises(Problem):
            key_of([value])


def test_parts_are_told_apart() -> None:
    """Else one principal could reach for another one's key."""
    assert hash_of_parts("ab", "c") != hash_of_parts("a", "bc")
    assert hash_of_parts("ab", b"c") == hash_of_parts("ab", "c")
    assert len(hash_of_parts("\ud800")) == 32
