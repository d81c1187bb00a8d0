"""Classes with pydantic's two methods, whoever wrote them: what they are asked for, and what they may raise."""

from __future__ import annotations

from typing import Any

import pytest

from microbatch._pure.models import as_shown, dump, is_whole_model, text_of, validate


class Bare:
    """The two methods and no settings."""

    made: Any = None

    @classmethod
    def model_validate(cls, value: Any) -> Any:
        return ("validated", value)

    def model_dump(self) -> Any:
        return {"dumped": True}


class Old:
    """As pydantic before 2.11: there is no way to read fields by their names."""

    @classmethod
    def model_validate(cls, value: Any, *, strict: bool | None = None) -> Any:
        return value, strict

    def model_dump(self, *, mode: str = "python", by_alias: bool = False) -> Any:
        return mode, by_alias


class Open:
    """Takes whatever it is given."""

    @classmethod
    def model_validate(cls, value: Any, **settings: Any) -> Any:
        return settings

    def model_dump(self, **settings: Any) -> Any:
        return settings


class BrokenError(ValueError):
    """Says what is wrong, or fails to."""

    def __init__(self, found: Any) -> None:
        super().__init__("as it is")
        self.found = found

    def errors(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def test_a_class_with_both_methods_is_a_model() -> None:
    """One alone reads or writes; an item has to do both."""
    assert is_whole_model(Bare)
    assert is_whole_model(Open)
    assert not is_whole_model(type("Reads", (), {"model_validate": print}))
    assert not is_whole_model(type("Writes", (), {"model_dump": print}))
    assert not is_whole_model(type("Neither", (), {"model_validate": 1, "model_dump": 2}))
    assert not is_whole_model(int)


def test_methods_are_called_with_what_they_take() -> None:
    """Whoever has written such a class need not know pydantic's settings."""
    assert dump(Bare()) == {"dumped": True}
    assert as_shown(Bare()) == {"dumped": True}
    assert validate(Bare, 5) == ("validated", 5)
    assert dump(Open()) == {
        "mode": "python", "by_alias": False, "round_trip": True, "warnings": False,
    }  # fmt: skip
    assert as_shown(Open()) == {"mode": "json", "by_alias": True}
    assert validate(Open, 5) == {"strict": False, "by_alias": True, "by_name": True}


def test_a_class_that_reads_no_names_is_written_by_alias() -> None:
    """So older versions of pydantic read back what they wrote."""
    assert dump(Old()) == ("python", True)
    assert as_shown(Old()) == ("json", True)
    assert validate(Old, 5) == (5, False)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenError([{"loc": ("a", 0, "b"), "msg": "bad"}, {"loc": (), "msg": "worse"}]), "a.0.b: bad; worse"),
        (BrokenError([{"loc": (i,), "msg": "x"} for i in range(12)]), "; ".join(f"{i}: x" for i in range(10)) + "; and 2 more"),
        (BrokenError(KeyError("x")), "as it is"),
        (BrokenError([{"no": 1}]), "as it is"),
        (BrokenError(5), "as it is"),
        (KeyError("no errors"), "'no errors'"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named_where_the_error_knows_them(error: Exception, message: str) -> None:
    """Else the error is as it was."""

    class Wrong(Bare):
        @classmethod
        def model_validate(cls, value: Any) -> Any:
            raise error

    with pytest.raises(type(error) if message == "as it is" else (ValueError, KeyError)) as caught:
        validate(Wrong, 1)
    assert str(caught.value) == message
    assert caught.value is error or caught.value.__cause__ is error


def test_what_has_no_form_in_json_is_shown_by_its_parts() -> None:
    """Who shows them may know what to do with bytes."""

    class Bytes(Bare):
        def model_dump(self, mode: str = "python") -> Any:
            if mode == "json":
                raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
            return {"raw": b"\xff"}

    assert as_shown(Bytes()) == {"raw": b"\xff"}


def test_what_is_no_model_and_has_no_text_is_refused() -> None:
    """In msgspec's own words, which say it without a hook."""
    for function in (as_shown, text_of):
        with pytest.raises(TypeError, match=r"^Encoding objects of type complex is unsupported$"):
            function(1j)
