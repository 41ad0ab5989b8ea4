"""Write docs/configuration.md, the reference of every key, from the settings classes.

`python tools/configuration_page.py` compares and says whether the page is current;
`--update` rewrites it. Transports are found as an installation finds them: by the entry points
that each package declares.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from postbus.settings import (
    CommandBusSettings,
    ConsumerSection,
    EventBusSettings,
    EventRouterSettings,
    Key,
    PostbusSettings,
    ProducerSection,
    QueryBusSettings,
    RetrySettings,
    RouteTarget,
    RuleSettings,
    StoreSection,
    WorkerSettings,
    describe,
    keys_of,
)
from postbus.stores import SQLiteStoreSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postbus.transports import Transport

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
PROJECTS = sorted(ROOT.glob("packages/*/pyproject.toml"))

HEAD = """\
<!-- Written by tools/configuration_page.py: change the settings classes, then run it. -->

# Configuration

Everything is one dict.
A TOML, YAML or JSON file is another way to write it: `postbus.config.load(path)` reads one.

```toml
[postbus]
messages = ["shop.messages"]

[postbus.producers.mail]
transport = "zeromq"
dsn = "${MAIL_DSN:tcp://127.0.0.1:5555}"

[postbus.command_bus]
plugins = ["audit"]
router.routes."shop.register-user" = "register_user"
router.routes."shop.mail.send-welcome" = "send_mail"
router.send."shop.mail.*" = "producers.mail"

[postbus.consumers.mail]
transport = "zeromq"
dsn = "${MAIL_DSN:tcp://127.0.0.1:5555}"
concurrency = 16

failure_store = "main"
retry = { max_attempts = 5, initial_delay = 0.5 }
rules = [{ match = "shop.report.*", retry = { max_attempts = 2 } }]
inbox = "main"

[postbus.stores.main]
store = "sqlite"
path = "postbus.db"

[postbus.worker]
shutdown_grace = 10.0
```

Message names have dots, so as keys they stand in quotes.
Durations are seconds, with or without a fraction.
Names of producers, consumers and buses are lower-case letters, digits and `_`.
The dict is checked as a whole before anything is built.
All that is wrong comes in one `ConfigurationError`, each problem with its path.

## Values from the environment

`load` replaces `${VAR}` and `${VAR:default}` in every text, and `$$` by `$`.
A dict that was made elsewhere goes through `postbus.config.interpolate(config, os.environ)`.
A variable without a value and without a default is an error.
Text with a variable in it is a number or a boolean where a key wants one: `"${THREADS:4}"` is 4.
Other text is not: `threads = "4"` is refused.
Errors show the variable's name, never its value.
Under `messages` and `errors`, which name code that is imported, variables are refused.
"""

SECTIONS: tuple[tuple[str, type, str], ...] = (
    ("`[postbus]`", PostbusSettings, ""),
    (
        "`[postbus.producers.NAME]`",
        ProducerSection,
        "Every other key is the transport's; those of the transports here stand below.",
    ),
    (
        "`[postbus.consumers.NAME]`",
        ConsumerSection,
        "Every other key is the transport's; those of the transports here stand below.",
    ),
    ("`[postbus.command_bus]`", CommandBusSettings, ""),
    ("`[postbus.event_bus]`", EventBusSettings, ""),
    ("`[postbus.query_bus]`", QueryBusSettings, ""),
    (
        "`router` of a bus",
        EventRouterSettings,
        "A command or query has one handler, so no array there.",
    ),
    (
        "A target as a table",
        RouteTarget,
        "`threads` and `when` stand in `routes` only, `when` for events only.",
    ),
    ("`[postbus.worker]`", WorkerSettings, ""),
    ("`retry` of a consumer", RetrySettings, ""),
    ("A rule of a consumer", RuleSettings, ""),
    (
        "`[postbus.stores.NAME]`",
        StoreSection,
        "Every other key is that of the kind of store; those of core's stand below.",
    ),
    ('`[postbus.stores.NAME]` with `store = "sqlite"`', SQLiteStoreSettings, ""),
)


def transports() -> Iterator[Transport]:
    """Yield the record of every transport that a package here announces."""
    for project in PROJECTS:
        declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        announced = declared.get("entry-points", {}).get("postbus.transports", {})
        for target in announced.values():
            module, name = target.split(":")
            yield getattr(import_module(module), name)


def table(cls: type) -> str:
    """Describe the keys of a settings class, a row each."""
    rows = ["| key | value | default | |", "| --- | --- | --- | --- |"]
    for key in keys_of(cls):
        cells = (f"`{key.name}`", describe(key.type, key.rule), default(key), doc(key))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def default(key: Key) -> str:
    """Say what a section without the key gets."""
    if key.is_required:
        return "required"
    if key.default is None:
        return "unset"
    factory = getattr(key.default, "factory", None)
    if factory is None:
        return f"`{toml(key.default)}`"
    if attrs.has(factory):
        return "its defaults"
    # Of a default that is computed the text says how.
    return "empty" if factory in {dict, list} else "computed"


def toml(value: Any) -> str:
    """Write a plain value as TOML does."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def doc(key: Key) -> str:
    """Return what a key does, as a sentence."""
    text = key.rule.doc[:1].upper() + key.rule.doc[1:].rstrip(".") + "."
    return text if key.rule.available else f"{text} *Not available yet.*"


def section(title: str, cls: type, more: str) -> str:
    """Return one section of the page."""
    about = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    opening = "" if about.startswith("`[") else f"{about}\n"
    opening += f"{more}\n" if more else ""
    return f"\n## {title}\n\n{opening}{chr(10) if opening else ''}{table(cls)}"


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, *(section(*each) for each in SECTIONS)]
    for transport in transports():
        parts.append(f"\n## Transport `{transport.name}`\n\nIn a producer's section:\n\n")
        parts.append(table(transport.producer_settings))
        parts.append("\nIn a consumer's section:\n\n")
        parts.append(table(transport.consumer_settings))
    return "".join(parts)


def main() -> int:
    """Compare or rewrite; 1 when the page is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="rewrite the page")
    if parser.parse_args().update:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print("docs/configuration.md is not current: python tools/configuration_page.py --update")
    return 1


if __name__ == "__main__":
    sys.exit(main())
