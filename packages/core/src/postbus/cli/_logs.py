"""The records of a worker on standard error: one line each, with their facts."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from postbus.settings import mask

__all__ = ["LEVELS", "log_to_stderr"]

LEVELS = ("debug", "info", "warning", "error")
# What every record has; the rest was given as `extra`.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def log_to_stderr(level: str, *, as_json: bool) -> None:
    """Write the records of this process from *level* on; handlers that were there are replaced."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_json=as_json))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class Lines(logging.Formatter):
    """A line of text, or a JSON object, with what was given as `extra`; without what is None."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said = mask(record.getMessage())
        facts = {
            key: value
            for key, value in vars(record).items()
            if key not in _USUAL and value is not None
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level = record.levelname.lower()
        if self._as_json:
            whole: dict[str, Any] = {"at": at, "level": level, "event": said, **facts}
            return json.dumps(whole, default=str)
        traceback = facts.pop("traceback", None)
        line = " ".join([at, level, said, *(f"{key}={value}" for key, value in facts.items())])
        return line if traceback is None else f"{line}\n{traceback}"
