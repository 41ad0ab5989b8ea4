"""Turn what pyzmq raises into postbus errors: one map, the most specific entry wins."""

from __future__ import annotations

import errno

import zmq

from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    RejectedError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)

__all__ = ["BY_CLASS", "BY_ERRNO", "translate"]

BY_CLASS: dict[type[BaseException], type[TransportError]] = {
    zmq.ZMQBaseError: TransportError,
    zmq.ZMQError: ConnectionFailedError,
    zmq.ZMQBindError: ConnectionFailedError,
    zmq.ZMQVersionError: UnsupportedError,
    zmq.Again: TimedOutError,
    zmq.NotDone: TimedOutError,
    zmq.ContextTerminated: ClosedError,
    zmq.error.InterruptedSystemCall: TransportError,
}

BY_ERRNO: dict[int, type[TransportError]] = {
    errno.EMSGSIZE: RejectedError,
    errno.EPROTONOSUPPORT: UnsupportedError,
    zmq.ENOCOMPATPROTO: UnsupportedError,
    zmq.ENOTSUP: UnsupportedError,
    zmq.ENOTSOCK: ClosedError,
    zmq.ETERM: ClosedError,
}


def translate(error: BaseException, doing: str) -> TransportError:
    """Return the postbus error for *error*; raise it `from` that one.

    *doing* says what failed and where: "bind tcp://127.0.0.1:5555".
    """
    kind = BY_ERRNO.get(getattr(error, "errno", None) or 0)
    if kind is None:
        kind = next(BY_CLASS[each] for each in type(error).__mro__ if each in BY_CLASS)
    return kind(f"cannot {doing}: {getattr(error, 'strerror', None) or error}")
