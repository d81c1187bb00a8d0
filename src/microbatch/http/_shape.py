"""Shape: a type that clients send values of. What does not fit it is one item's fault, with an address."""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec
import msgspec.inspect
import msgspec.structs

from microbatch._pure.exceptions import ItemError
from microbatch._pure.models import is_whole_model, validate
from microbatch._telemetry.log import write

#: What msgspec says behind a message about where: ``Expected `int`, got `str` - at `$.tags[0]` ``.
_AT = re.compile(r"^(?P<text>.*?)(?: - at `(?P<key>key in )?\$(?P<path>.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+)\]")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")

#: Characters of a message that are told: a union of many types makes long ones.
_CHARACTERS_MAX = 500


class InvalidItem(ItemError):
    """What was sent for an item does not fit its type, or names what there is not.

    Attributes:
        pointer: Where in the item, as a JSON pointer; empty for the item as a whole.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "invalid_item",
        field: str | None = None,
        pointer: str = "",
    ) -> None:
        super().__init__(message, code=code, retryable=False, field=field)
        self.pointer = pointer


def pointer_to(message: str) -> tuple[str, str | None, str]:
    """Take apart what msgspec says: the text, the first field on the way, and the way as a JSON pointer."""
    match = _AT.match(message)
    assert match is not None  # noqa: S101 - it takes any text
    text = match["text"]
    steps: list[str] = []
    path = match["path"] or ""
    position = 0
    while step := _STEP.match(path, position):
        steps.append(step["name"] or step["index"])
        position = step.end()
    missing = _MISSING.match(text)
    if missing is not None and position == len(path):
        steps.append(missing["name"])
    field = next((step for step in steps if not step.isdecimal()), None)
    pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
    return text[:_CHARACTERS_MAX], field, pointer


class Shape:
    """Reads values of one type: from JSON, and from the parts of a URL.

    Args:
        kind: Any type that msgspec can decode, or a model in the manner of pydantic.
        setting: The setting's name, for messages.

    Raises:
        TypeError: If msgspec cannot decode into the type.
    """

    def __init__(self, kind: Any, setting: str) -> None:
        self.kind: Any = kind
        try:
            self.decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind, dec_hook=made)
        except Exception as error:
            message = f"{setting} must be a type that msgspec can decode, got {kind!r}: {error}"
            raise TypeError(message) from error

    def decode(self, raw: bytes | msgspec.Raw) -> Any:
        """Return the value of a piece of JSON.

        Raises:
            InvalidItem: If it does not fit.
        """
        try:
            return self.decoder.decode(raw)
        except Exception as error:
            raise invalid(error) from error

    def convert(self, text: str) -> Any:
        """Return the value of a part of a path or of a query.

        Raises:
            InvalidItem: If it does not fit.
        """
        try:
            return msgspec.convert(text, self.kind, strict=False, dec_hook=made)
        except Exception as error:
            raise invalid(error) from error


def made(kind: Any, value: Any) -> Any:
    """Make a model of what was sent, for msgspec.

    Raises:
        ValueError: If the model finds it wrong.
    """
    return (
        validate(kind, value) if is_whole_model(kind) else value
    )  # msgspec sees whether that fits


def invalid(error: Exception) -> InvalidItem:
    """Return what is said of a value that could not be read, whatever was raised about it."""
    if isinstance(error, msgspec.ValidationError):
        text, field, pointer = pointer_to(str(error))
        return InvalidItem(text, field=field, pointer=pointer)
    if isinstance(error, RecursionError):
        return InvalidItem("it is nested too deeply")
    if isinstance(error, (msgspec.DecodeError, UnicodeError)):
        return InvalidItem("it is no valid JSON")
    # A type's own code raised what is no word about a value: that is the application's fault, and stays inside.
    write(logging.WARNING, "an item could not be read", exc_info=error)
    return InvalidItem("it does not fit its type")


def changes_of(item_type: Any) -> Any:
    """Make the type of changes to a struct: the same fields, each of which may be left out.

    Raises:
        TypeError: If it is no msgspec struct: for others ``update_type`` must be given.
    """
    if not (isinstance(item_type, type) and issubclass(item_type, msgspec.Struct)):
        message = (
            "update_type must be given where item_type is no msgspec.Struct, "
            f"got update_type=None and item_type={item_type!r}"
        )
        raise TypeError(message)
    config = item_type.__struct_config__
    fields = [
        (
            field.name,
            field.type | msgspec.UnsetType,
            msgspec.field(default=msgspec.UNSET, name=field.encode_name),
        )
        for field in msgspec.structs.fields(item_type)
    ]
    return msgspec.defstruct(
        f"{item_type.__name__}Changes",
        fields,
        module=item_type.__module__,
        kw_only=True,
        frozen=True,
        forbid_unknown_fields=config.forbid_unknown_fields,
        tag_field=config.tag_field,
        tag=config.tag,
    )
