"""docs/reference/testing.md against the code, and the examples of docs/how-to/testing.md as pytest runs them."""

from __future__ import annotations

import inspect
import re

import pytest
from pages_support import REFERENCE, documented, rows, sections

from microbatch import testing
from microbatch._loops import virtual

PAGE = REFERENCE / "testing.md"


def test_every_public_name_has_an_entry() -> None:
    """What can be imported is described, and what is described can be imported."""
    assert set(sections(PAGE)) - {"Testing"} == set(testing.__all__)


@pytest.mark.parametrize("name", testing.__all__)
def test_the_documented_call_is_the_codes(name: str) -> None:
    """With its defaults."""
    signature = inspect.signature(getattr(testing, name))
    names = ", ".join(str(p).replace("'", '"') for p in unannotated(signature).parameters.values())
    assert (
        f"`{name}({names})`" in sections(PAGE)[name] or f"`with {name}():`" in sections(PAGE)[name]
    )


def unannotated(signature: inspect.Signature) -> inspect.Signature:
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters)


def test_the_documented_backends_are_the_ones_that_are_taken() -> None:
    """And what each gives is what stands beside it."""
    for backend, gives, _ in rows(sections(PAGE)["virtual_time"])[1:]:
        (key,) = testing.virtual_time(backend.strip('`"'))
        assert gives.startswith(f'`{{"{key}": ...}}`')


def test_the_documented_attributes_are_the_codes() -> None:
    """What a record has."""

    @testing.recorded
    def handler(items: list[int]) -> None: ...

    assert set(documented(PAGE, "recorded")) == set(vars(handler)) - {"__wrapped__"}


def test_the_documented_patience_is_the_codes() -> None:
    """In the page and in the docstring."""
    for text in (sections(PAGE)["virtual_time"], testing.virtual_time.__doc__ or ""):
        assert re.search(rf"ends after {virtual.PATIENCE:g} seconds", " ".join(text.split()))
