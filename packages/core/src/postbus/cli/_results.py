"""What became of each of several ids."""

from __future__ import annotations

import attrs
import click

from postbus.cli._output import show_json

__all__ = ["Results"]


@attrs.define
class Results:
    """Collects one result for each id, and says them all."""

    as_json: bool
    _trouble: dict[str, str | None] = attrs.field(factory=dict[str, str | None], init=False)

    def add(self, id_: str, trouble: str | None) -> None:
        """Note that *id_* is done, or what the *trouble* with it was."""
        self._trouble[id_] = trouble

    def report(self) -> None:
        """Print them; the command exits with 1 where one of them failed."""
        if self.as_json:
            show_json(
                [
                    {"id": id_, "done": trouble is None, "trouble": trouble}
                    for id_, trouble in self._trouble.items()
                ]
            )
        else:
            for id_, trouble in self._trouble.items():
                click.echo(f"{id_}: {trouble or 'done'}", err=trouble is not None)
            if not self._trouble:
                click.echo("none")
        if any(self._trouble.values()):
            click.get_current_context().exit(1)
