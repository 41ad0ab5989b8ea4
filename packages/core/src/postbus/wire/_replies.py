"""Answers to queries: the JSON of a result, or an RFC 9457 problem object for a failure."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec

from postbus.errors import (
    DecodeError,
    EncodeError,
    HandlerFailedError,
    NoHandlerError,
    PostbusError,
    RejectedError,
    TimedOutError,
    UnauthorizedError,
    ValidationFailedError,
)
from postbus.messages import Query
from postbus.wire._reasons import Reason
from postbus.wire._scan import DEFAULT_MAX_SIZE_BYTES, check_body
from postbus.wire._types import substitute
from postbus.wire._write import write_value

if TYPE_CHECKING:
    from postbus.messages import Envelope

_write = msgspec.json.Encoder().encode


def encode_result(value: Any, *, max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES) -> bytes:
    """Return the answer to a query as JSON and nothing else, so that any peer can read it.

    Raises:
        EncodeError: *value*, or something in it, cannot be written so that it can be read.
    """
    try:
        body = _write(write_value(value))
        check_body(body, max_size_bytes)
    except DecodeError as error:
        raise EncodeError(f"the result: {error.message}") from error
    except Exception as error:
        raise EncodeError(f"the result: {error}") from error
    return body


def decode_result(body: bytes, type_: Any, *, max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES) -> Any:
    """Return the answer in *body*, structured strictly into *type_*; `Any` is plain JSON.

    Raises:
        DecodeError: the body is no JSON, or does not fit *type_*.
    """
    from postbus.wire._read import loader

    check_body(body, max_size_bytes)
    return loader(type_, Reason.INVALID_RESULT, ignore_unknown=False)(body)


def answer_type(cls: type) -> Any:
    """Return R of the `Query[R]` that *cls* is; `Any` where it does not say."""
    answer = _answer_of(cls)
    return Any if answer is None or isinstance(answer, TypeVar) else answer


def _answer_of(cls: type) -> Any:
    for base in cls.__dict__.get("__orig_bases__", ()):
        origin: Any = get_origin(base)
        if origin is Query:
            return _resolved(get_args(base)[0], cls)
        if isinstance(origin, type) and issubclass(origin, Query):
            given: dict[Any, Any] = dict(
                zip(base.__origin__.__parameters__, get_args(base), strict=True)
            )
            return _resolved(substitute(_answer_of(base.__origin__), given), cls)
    for base in cls.__bases__:
        if base is not Query and issubclass(base, Query):
            return _answer_of(cast("type", base))
    return None


def _resolved(answer: Any, cls: type) -> Any:
    """Turn names in quotes into what they name in the module of *cls*."""
    try:
        return get_type_hints(
            SimpleNamespace(__annotations__={"answer": answer}),
            vars(sys.modules[cls.__module__]),
            include_extras=True,
        )["answer"]
    except NameError:
        return answer


class _Problem(msgspec.Struct, omit_defaults=True):
    """What of an RFC 9457 problem object we write and read; unknown members are ignored."""

    type: str = "about:blank"
    title: str = ""
    code: str = ""
    detail: str = ""


_URN = "urn:postbus:problem:"
_HANDLER_FAILED = f"{_URN}handler-failed"
_UNREGISTERED = "error"
_LONGEST = {"code": 128, "detail": 1024}
_HANDLER_TITLE = "the handler failed"
_read = msgspec.json.Decoder(_Problem).decode
# The most specific class comes first.
_OURS: tuple[tuple[type[PostbusError], str, str], ...] = (
    (NoHandlerError, f"{_URN}no-handler", "nothing handles this message"),
    (UnauthorizedError, f"{_URN}unauthorized", "a guard refused this message"),
    (ValidationFailedError, f"{_URN}validation-failed", "a validator refused this message"),
    (TimedOutError, f"{_URN}timed-out", "the answer took too long"),
    (RejectedError, f"{_URN}rejected", "the message was refused"),
    (DecodeError, f"{_URN}rejected", "the message was refused"),
)


def encode_problem(error: BaseException) -> bytes:
    """Return a failure as an RFC 9457 problem object. Never raises.

    *detail* is there for errors of postbus and for registered errors of handlers: what any other
    error says stays here, for it may hold anything.
    """
    problem = _problem_of(error)
    # Text that UTF-8 cannot write would make an error of an error.
    for name in ("code", "detail"):
        text = str(getattr(problem, name)).encode(errors="replace").decode()
        setattr(problem, name, text[: _LONGEST[name]])
    return _write(problem)


def _problem_of(error: BaseException) -> _Problem:
    if isinstance(error, HandlerFailedError):
        detail = error.message if error.is_registered else ""
        return _Problem(_HANDLER_FAILED, _HANDLER_TITLE, error.code, detail)
    for cls, urn, title in _OURS:
        if isinstance(error, cls):
            code = error.reason if isinstance(error, DecodeError) else urn.removeprefix(_URN)
            # A validator's words may quote the message.
            detail = "" if cls is ValidationFailedError else str(error)
            return _Problem(urn, title, code, detail)
    return _Problem(_HANDLER_FAILED, _HANDLER_TITLE, _UNREGISTERED)


def decode_problem(body: bytes, envelope: Envelope | None) -> PostbusError:
    """Return the error that a problem object stands for, about *envelope*. Never raises.

    `HandlerFailedError` with the handler's code; `NoHandlerError`, `UnauthorizedError`,
    `ValidationFailedError`, `TimedOutError` and `RejectedError` for those of the other side. A
    body that is no problem of ours, such as a proxy's, becomes a `RejectedError`.
    """
    try:
        check_body(body, DEFAULT_MAX_SIZE_BYTES)
        problem = _read(body)
    except (ValueError, RecursionError, DecodeError):
        return RejectedError("the other side failed, and did not say how", envelope)
    detail = problem.detail[: _LONGEST["detail"]]
    if problem.type == _HANDLER_FAILED:
        code = problem.code[: _LONGEST["code"]] or _UNREGISTERED
        failed = HandlerFailedError(code, detail or problem.title, envelope)
        failed.is_registered = bool(detail)
        return failed
    text = detail or problem.title[: _LONGEST["detail"]] or "the other side failed"
    for cls, urn, _ in _OURS:
        if problem.type == urn and issubclass(
            cls, NoHandlerError | UnauthorizedError | ValidationFailedError | TimedOutError
        ):
            return cls(text, envelope)
    return RejectedError(text, envelope)
