"""The keys that a section with `transport = "files"` may have beside postbus's own."""

from __future__ import annotations

import attrs

from postbus.settings import setting

__all__ = ["FilesConsumerSettings", "FilesProducerSettings"]

_PATH_DOC = (
    "the folder that is the queue; made with mode 0700 when it is not there. A relative path "
    "counts from where the process was started"
)
_SYNC_DOC = (
    "true waits until the disk has a message before the send returns, so that it survives a "
    "crash of the machine; false survives a crash of the process only, and is several times faster"
)
_POLL_DOC = (
    "how long an idle side sleeps before it looks again; it is the longest wait of a message for "
    "an idle consumer, and a look costs some tens of microseconds"
)
_POLL_INTERVAL = 0.02
_LONGEST_POLL = 60.0
# Long against a handler, short against a person who waits for a killed worker's messages; the
# worker renews it for handlers that take longer.
_LEASE = 30.0


@attrs.frozen(kw_only=True)
class FilesProducerSettings:
    """The keys of a producer's section. Durations are seconds."""

    path: str = setting(doc=_PATH_DOC, pattern=r"[^\0]+", expected="the path of a folder")
    sync: bool = setting(default=True, doc=_SYNC_DOC)
    poll_interval: float = setting(
        _POLL_INTERVAL,
        doc=f"for the answers to queries: {_POLL_DOC}",
        above=0.0,
        maximum=_LONGEST_POLL,
    )


@attrs.frozen(kw_only=True)
class FilesConsumerSettings:
    """The keys of a consumer's section. Durations are seconds."""

    path: str = setting(doc=_PATH_DOC, pattern=r"[^\0]+", expected="the path of a folder")
    sync: bool = setting(
        default=True, doc="true waits until the disk has what a retry puts in place of a message"
    )
    poll_interval: float = setting(_POLL_INTERVAL, doc=_POLL_DOC, above=0.0, maximum=_LONGEST_POLL)
    lease: float = setting(
        _LEASE,
        doc="how long a consumer may hold a message before others get it: the wait after a crash",
        above=0.0,
        maximum=86_400.0,
    )
