"""`postbus check`: what can be known to be wrong without running anything."""

from __future__ import annotations

from textwrap import fill

import attrs
import click

from postbus.cli._output import show_json
from postbus.cli._state import State, common_options, pass_state
from postbus.errors import ConfigurationError
from postbus.runtime import RULES, Finding, Rule, examine, finding_of

__all__ = ["check"]


@click.command()
@click.option(
    "--explain", metavar="RULE", type=click.Choice(list(RULES)), help="Say what it means."
)
@click.option("--rules", "lists_rules", is_flag=True, help="List all rules.")
@click.option(
    "--ignore", metavar="RULE", type=click.Choice(list(RULES)), multiple=True, help="Leave it out."
)
@common_options()
@pass_state
def check(
    state: State, /, explain: str | None, ignore: tuple[str, ...], *, lists_rules: bool
) -> None:
    """Look for mistakes without running anything.

    Finds what a start would refuse, and, where it would refuse nothing, what hardly anybody
    means. Makes no handler and connects nothing; imports what the application imports. Exits
    with 1 where it finds something.
    """
    if explain is not None:
        _show_rules(state, [RULES[explain]], in_full=True)
    elif lists_rules:
        _show_rules(state, list(RULES.values()), in_full=False)
    else:
        findings = [each for each in _findings(state) if each.rule not in ignore]
        _show(state, findings)
        if findings:
            click.get_current_context().exit(1)


def _findings(state: State) -> list[Finding]:
    try:
        with state.opened() as postbus:
            return examine(postbus.project())
    except ConfigurationError as error:
        return [finding_of(problem) for problem in error.problems]


def _show(state: State, findings: list[Finding]) -> None:
    if state.as_json:
        show_json([attrs.asdict(finding) for finding in findings])
        return
    for finding in findings:
        click.echo(f"{finding.path}: {finding.text} [{finding.rule}]")
        if finding.remedy:
            click.echo(f"    {finding.remedy}")
    count = len(findings)
    if count == 0:
        click.echo("nothing found")
    else:
        things = "thing" if count == 1 else "things"
        click.echo(f"{count} {things} found; postbus check --explain RULE says more", err=True)


def _show_rules(state: State, rules: list[Rule], *, in_full: bool) -> None:
    if state.as_json:
        facts = ("id", "summary", "explanation", "is_refused")
        show_json([{name: getattr(rule, name) for name in facts} for rule in rules])
        return
    for rule in rules:
        click.echo(f"{rule.id}: {rule.summary}")
        if in_full:
            click.echo(f"\n{fill(rule.explanation)}\n")
            when = "A start refuses it." if rule.is_refused else "It starts all the same."
            click.echo(when)
