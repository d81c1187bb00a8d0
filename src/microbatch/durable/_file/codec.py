"""Payloads to bytes and back: typed MessagePack, never pickle. Pure.

A user's type may raise anything while it is encoded, decoded or compared. Whatever it is ends as a TypeError or
ValueError of ours with that as its cause, so that it is one item's fault. What is no ``Exception`` passes.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

import msgspec

from microbatch._pure.report import INTERNAL_ERROR, error_code
from microbatch.durable.errors import ItemFailed

from .foreign import Foreign, unreadable
from .job_life import CODE_CHARACTERS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: How much of an error is kept. A message of 2,000 characters still says what happened, and 8,000 of a
#: traceback are its last 50 frames or so: a million dead letters stay at a few gigabytes at the worst.
MESSAGE_CHARACTERS_MAX = 2_000
TRACEBACK_CHARACTERS_MAX = 8_000

_encode = msgspec.msgpack.Encoder().encode


class Codec(Generic[T]):
    """Encode and decode values of one type.

    Args:
        value_type: Any type that msgspec can decode, with models of pydantic's in it or not.
        setting: The setting's name, for messages.
        enc_hook, dec_hook: The user's, for types that msgspec does not know.

    Raises:
        TypeError: If msgspec cannot decode into the type, for example a union of structs without tags, or
            holds a class that neither it nor a hook can make.
    """

    def __init__(
        self,
        value_type: Any,
        setting: str,
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[type, Any], Any] | None = None,
    ) -> None:
        foreign = Foreign(enc_hook, dec_hook)
        self._encode = msgspec.msgpack.Encoder(enc_hook=foreign.encode).encode
        # Sets and the keys of dicts in one order, whatever the hash seed: for values without an `__eq__`.
        in_order = msgspec.msgpack.Encoder(enc_hook=foreign.encode, order="deterministic")
        self._encode_in_order = in_order.encode
        try:
            self._decode = msgspec.msgpack.Decoder(value_type, dec_hook=foreign.decode).decode
            if dec_hook is None and (strange := unreadable(value_type)) is not None:
                raise TypeError(
                    f"nothing makes a {strange} of what was stored; give it model_validate and "
                    "model_dump, or give dec_hook"
                )
        except Exception as error:
            message = f"{setting} must be a type that msgspec can decode, got {value_type!r}: {_text(error)}"
            raise TypeError(message) from error
        self._name = getattr(value_type, "__name__", None) or repr(value_type)

    def encode(self, value: Any) -> tuple[bytes, T]:
        """Return the bytes for the disk and the value as it will be read back.

        Reading back is the validation: msgspec's constructors and its encoder do not check fields, so a
        wrong one would only be found when a handler is to have it.

        Raises:
            TypeError: If the value, or a part of it, has no MessagePack form.
            ValueError: If what would be read back does not fit the type.
        """
        try:
            payload = self._encode(value)
        except Exception as error:
            message = f"cannot encode {type(value).__name__} for the disk: {_text(error)}"
            raise TypeError(message) from error
        try:
            return payload, self._decode(payload)
        except Exception as error:
            message = f"{type(value).__name__} does not read back as {self._name}: {_text(error)}"
            raise ValueError(message) from error

    def decode(self, payload: bytes) -> T:
        """Return the value.

        Raises:
            ValueError: If the bytes do not fit the type, whatever was raised about them.
        """
        try:
            return cast("T", self._decode(payload))
        except Exception as error:
            if not payload:
                message = "its payload is missing: the file was damaged"
            else:
                message = f"stored bytes no longer decode as {self._name}: {_text(error)}"
            raise ValueError(message) from error

    def same(self, first: bytes, second: bytes) -> bool:
        """Tell whether two payloads mean the same: whether they decode to equal values.

        Equal values may have different bytes: a set under another hash seed, a dict in another order, a
        type that grew a default since. Equal bytes always mean the same, also where a value differs from
        itself, as NaN does. What no longer decodes, or cannot be compared, is not the same.
        """
        if first == second:
            return True
        try:
            one, other = self._decode(first), self._decode(second)
            return bool(one == other) or self._encode_in_order(one) == self._encode_in_order(other)
        except Exception:  # noqa: BLE001 - a user's type may raise anything
            return False


def decode_roughly(payload: bytes) -> Any:
    """Return what can be made of a payload that no longer fits its type: built-in values, or the bytes."""
    try:
        return msgspec.msgpack.decode(payload)
    except Exception:  # noqa: BLE001 - garbage, whatever msgspec calls it
        return payload


#: Characters that are kept of an item that has no form for the disk.
ROUGH_CHARACTERS_MAX = 2_000


def encode_roughly(value: Any) -> bytes:
    """Return bytes for an item that does not fit its type, for people to look at: its text if need be."""
    try:
        return _encode(value)
    except Exception:  # noqa: BLE001 - a user's type may raise anything
        try:
            text = repr(value)
        except Exception:  # noqa: BLE001
            text = f"(a {type(value).__name__} that cannot be shown)"
        return _encode(_storable(text[:ROUGH_CHARACTERS_MAX]))


class _Error(NamedTuple):
    kind: str
    message: str
    traceback: str
    code: str = INTERNAL_ERROR  # not in errors of version 2, as the next one
    retryable: bool = False


_decode_error = msgspec.msgpack.Decoder(_Error).decode


def encode_error(error: BaseException, *, retryable: bool = False, code: str = "") -> bytes:
    """Return an exception as it is kept: class, text, the end of its traceback, each of bounded length.

    Args:
        error: The exception.
        retryable: Whether the item may do better another time.
        code: What its kind is called; the exception's own by default.
    """
    lines = ""
    if error.__traceback__ is not None:  # else never raised: the class name and the text say it all
        try:
            # A message is cut in here too: a long one would leave no room for the frames before it.
            lines = "".join(map(_short, traceback.format_exception(error)))
        except Exception as broken:  # noqa: BLE001 - a user's exception may be broken in any way
            lines = f"(its traceback cannot be shown: {type(broken).__name__})"
    return _stored(type(error).__name__, _text(error), lines, code or error_code(error), retryable)


def encode_reason(
    kind: str, message: str, code: str = INTERNAL_ERROR, *, retryable: bool = False
) -> bytes:
    """Return the same for what was not raised: an item whose process died."""
    return _stored(kind, message, "", code, retryable)


def decode_error(data: bytes | None, item_id: int, attempts: int) -> ItemFailed:
    """Return the stored error as the exception that callers get."""
    try:
        error = _decode_error(data or b"")
    except (msgspec.DecodeError, ValueError, RecursionError):
        error = _Error("UnknownError", "its record in the file cannot be read", "")
    return ItemFailed(
        item_id,
        error.kind,
        error.message,
        attempts,
        error.traceback,
        error.code,
        error.retryable,
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may raise anything
        return f"(its text cannot be shown: {type(broken).__name__})"


def _stored(kind: str, message: str, lines: str, code: str, retryable: bool) -> bytes:
    return _encode(
        _Error(
            kind[:MESSAGE_CHARACTERS_MAX],
            _storable(message[:MESSAGE_CHARACTERS_MAX]),
            _storable(lines[-TRACEBACK_CHARACTERS_MAX:]),
            _storable(code[:CODE_CHARACTERS_MAX]),
            retryable,
        )
    )


def _short(part: str) -> str:
    """Return a part of a traceback, a frame or a message, of bounded length."""
    if len(part) <= MESSAGE_CHARACTERS_MAX:
        return part
    return f"{part[:MESSAGE_CHARACTERS_MAX]}\n"


def _storable(text: str) -> str:
    # Lone surrogates, from a file name say, have no UTF-8 form and would make the dead letter impossible.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
