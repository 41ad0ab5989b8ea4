"""Guarantees of `postbus.config`: from a file to the dict, and what it hears when it cannot."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from postbus.config import EnvironmentText, interpolate, load, unwrap
from postbus.errors import ConfigurationError
from postbus.settings import read_settings

CANARY = "hunter2"

TOML = """
[postbus]
messages = ["shop.messages"]

[postbus.producers.mail]
transport = "zeromq"
dsn = "${MAIL_DSN:tcp://127.0.0.1:5555}"
timeout = 5.0

[postbus.command_bus]
plugins = ["audit"]
router.routes = { "shop.register-user" = "register_user" }
router.send = { "shop.mail.*" = "producers.mail" }

[postbus.worker]
threads = "${THREADS:4}"
"""

YAML = """
postbus:
  messages: [shop.messages]
  producers:
    mail:
      transport: zeromq
      dsn: "${MAIL_DSN:tcp://127.0.0.1:5555}"
      timeout: 5.0
  command_bus:
    plugins: [audit]
    router:
      routes: {shop.register-user: register_user}
      send: {shop.mail.*: producers.mail}
  worker:
    threads: "${THREADS:4}"
"""


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines_of(error: BaseException) -> list[str]:
    assert isinstance(error, ConfigurationError)
    return [str(problem) for problem in error.problems]


def refusal(path: Path) -> str:
    """Load a file that cannot be and return the one problem, without the folder."""
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    [line] = lines_of(caught.value)
    return line.replace(str(path), path.name)


class TestLoad:
    @pytest.mark.parametrize(
        ("name", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("A.YML", YAML)]
    )
    def test_a_file_is_the_same_dict(self, tmp_path: Path, name: str, text: str) -> None:
        """TOML and YAML say the same, and it is what settings read."""
        found = load(write(tmp_path, name, text), {"THREADS": "8"})
        assert {
            "messages": ["shop.messages"],
            "producers": {
                "mail": {
                    "transport": "zeromq",
                    "dsn": "tcp://127.0.0.1:5555",
                    "timeout": 5.0,
                }
            },
            "command_bus": {
                "plugins": ["audit"],
                "router": {
                    "routes": {"shop.register-user": "register_user"},
                    "send": {"shop.mail.*": "producers.mail"},
                },
            },
            "worker": {"threads": "8"},
        } == unwrap(found)
        problems: list[Any] = []
        settings = read_settings(unwrap(found), problems)
        assert [] == problems
        assert 8 == settings.worker.threads

    def test_the_environment_of_the_process_is_the_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Left out, variables come from `os.environ`, and a path may be text."""
        monkeypatch.setenv("POSTBUS_TEST_NAME", "joe")
        path = write(tmp_path, "a.toml", 'name = "${POSTBUS_TEST_NAME}"')
        assert {"name": "joe"} == load(str(path))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        """The error says which file and why."""
        assert "a.toml: cannot be read: No such file or directory" == refusal(tmp_path / "a.toml")
        (tmp_path / "b.toml").mkdir()
        assert "b.toml: cannot be read: Is a directory" == refusal(tmp_path / "b.toml")

    def test_an_unknown_ending_is_refused(self, tmp_path: Path) -> None:
        """Nothing is guessed from the content."""
        expected = "a.ini: expected a name that ends in .toml, .yaml, .yml or .json"
        assert expected == refusal(write(tmp_path, "a.ini", "{}"))

    def test_json_is_read(self, tmp_path: Path) -> None:
        """The same dict in another spelling, with variables as everywhere."""
        path = write(tmp_path, "a.json", '{"postbus": {"messages": [], "x": "${NAME}"}}')
        assert {"postbus": {"messages": [], "x": "joe"}} == load(path, {"NAME": "joe"})

    @pytest.mark.parametrize(
        ("name", "text", "line"),
        [
            (
                "a.toml",
                f'password = "{CANARY}"\nx = \n',
                "a.toml: expected TOML: Invalid value (at line 2, column 5)",
            ),
            (
                "a.toml",
                f'password = "{CANARY}"\npassword = "{CANARY}"\n',
                "a.toml: expected TOML: Cannot overwrite a value (at line 2, column 21)",
            ),
            (
                "a.json",
                f'{{"password": "{CANARY}",\n "x" 1}}',
                "a.json: expected JSON: Expecting ':' delimiter: line 2 column 6 (char 29)",
            ),
            (
                "a.json",
                f'{{"password": "{CANARY}", "password": "{CANARY}"}}',
                "a.json: expected JSON: a key stands twice",
            ),
            ("a.json", "[" * 100_000, "a.json: expected JSON: nested too deep"),
            ("a.toml", "x = " + "[" * 5000, "a.toml: expected TOML: nested too deep"),
            ("a.toml", b"x = '\xff'", "a.toml: expected UTF-8, which byte 5 is not"),
            (
                "a.yaml",
                f"a: {CANARY}: b\n",
                (
                    "a.yaml: expected YAML: mapping values are not allowed here "
                    "(at line 1, column 11)"
                ),
            ),
            (
                "a.yaml",
                f"a:\n  b: {CANARY}\n  b: {CANARY}\n",
                "a.yaml: expected YAML: the key 'b' stands twice (at line 3, column 3)",
            ),
            (
                "a.yaml",
                "a: !!python/name:os.system x\n",
                (
                    "a.yaml: expected YAML: could not determine a constructor for the tag "
                    "'tag:yaml.org,2002:python/name:os.system' (at line 1, column 4)"
                ),
            ),
            (
                "a.yaml",
                "? [a, b]\n: c\n",
                "a.yaml: expected YAML: found unhashable key (at line 1, column 3)",
            ),
            ("a.yaml", b"a: \x07", "a.yaml: expected YAML: ReaderError"),
            ("a.yaml", "[" * 5000, "a.yaml: expected YAML: RecursionError"),
            ("a.yaml", "a: 2026-99-99", "a.yaml: expected YAML: ValueError"),
            ("a.yaml", "- a\n", "a.yaml: expected a table at the top"),
            ("a.yaml", "", "a.yaml: expected a table at the top"),
        ],
    )
    def test_a_file_that_does_not_parse_says_where(
        self, tmp_path: Path, name: str, text: str, line: str
    ) -> None:
        """The line and column are told where the parser knows them, never the text there (A18)."""
        assert line == refusal(write(tmp_path, name, text))

    def test_a_yaml_merge_is_no_key_twice(self, tmp_path: Path) -> None:
        """A merged table may be overridden, which is what merging is for."""
        text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\n"
        found = load(write(tmp_path, "a.yaml", text))
        assert {"a": 1, "b": 3} == found["more"]

    def test_a_yaml_loop_is_refused(self, tmp_path: Path) -> None:
        """A table that contains itself ends as a problem, not as a recursion."""
        path = write(tmp_path, "a.yaml", "a: &a {b: [*a, *a]}\n")
        with pytest.raises(ConfigurationError) as caught:
            load(path)
        assert [
            "a.b[0]: expected no table within itself",
            "a.b[1]: expected no table within itself",
        ] == lines_of(caught.value)

    def test_without_pyyaml_it_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """YAML is an extra; the error names it."""
        monkeypatch.setitem(sys.modules, "yaml", None)
        expected = "a.yaml: reading YAML needs PyYAML; pip install postbus[yaml]"
        assert expected == refusal(write(tmp_path, "a.yaml", "a: 1"))


class TestInterpolate:
    @pytest.mark.parametrize(
        ("text", "result"),
        [
            ("${A}", "1"),
            ("${A}${A}", "11"),
            ("tcp://${HOST}:${PORT:5555}", "tcp://mq:5555"),
            ("${HOST:other}", "mq"),
            ("${EMPTY:other}", ""),
            ("${NONE:}", ""),
            ("${NONE:a:b $ c}", "a:b $ c"),
            ("$$", "$"),
            ("$${A}", "${A}"),
            ("$$$${A}", "$${A}"),
            ("$$${A}", "$1"),
            ("5 $", "5 $"),
            ("pa$word", "pa$word"),
            ("{A}", "{A}"),
        ],
    )
    def test_variables_are_replaced(self, text: str, result: str) -> None:
        """`${VAR}`, `${VAR:default}` and `$$`; what is set wins over a default, even if empty."""
        environ = {"A": "1", "HOST": "mq", "EMPTY": ""}
        assert [result] == interpolate([text], environ)

    def test_it_reaches_everything_but_keys(self) -> None:
        """Tables and arrays are copied all the way down; numbers and objects stay."""
        thing = object()
        config = {"a": {"${A}": ["${A}", ("${A}", 5)]}, "b": thing, "c": None}
        before = copy.deepcopy({**config, "b": None})
        found = interpolate(config, {"A": "1"})
        assert {"a": {"${A}": ["1", ["1", 5]]}, "b": thing, "c": None} == found
        assert before == {**config, "b": None}
        assert found["a"] is not config["a"]

    def test_all_problems_come_at_once(self) -> None:
        """Each variable that is missing and each reference that is none is told, with its path."""
        config = {
            "producers": {"mail": {"dsn": "${MAIL_DSN}", "hosts": ["a", "${B-C}"]}},
            "routes": {"shop.register": "${"},
        }
        with pytest.raises(ConfigurationError) as caught:
            interpolate(config, {})
        expected = "expected ${VAR} or ${VAR:default} after a ${, or $$ for a $"
        assert [
            (
                "producers.mail.dsn: the variable MAIL_DSN is not set; "
                "set it, or write ${MAIL_DSN:default}"
            ),
            f"producers.mail.hosts[1]: {expected}",
            f'routes."shop.register": {expected}',
        ] == lines_of(caught.value)

    @pytest.mark.parametrize("path", [("messages",), ("errors",), ("postbus", "errors")])
    def test_code_is_never_named_by_the_environment(self, path: tuple[str, ...]) -> None:
        """A module or class to import stands in the file itself (A8)."""
        config: Any = ["${MODULE:os}"]
        for key in reversed(path):
            config = {key: config}
        with pytest.raises(ConfigurationError) as caught:
            interpolate(config, {})
        where = ".".join(path)
        assert [
            f"{where}[0]: names code, which does not come from the environment; write it out"
        ] == lines_of(caught.value)
        assert {"messages": ["$"]} == interpolate({"messages": ["$$"]}, {})

    def test_what_it_made_knows_where_it_came_from(self) -> None:
        """The text carries what stood in the file, without a default, which may be a secret."""
        found = interpolate({"a": f"x${{A:{CANARY}}}$$", "b": "plain"}, {})
        assert f"x{CANARY}$" == found["a"]
        assert "x${A}$" == found["a"].template
        assert str is type(found["b"])

    def test_the_text_survives_being_copied(self) -> None:
        """A container may copy the dict that it is given."""
        text = EnvironmentText("5", "${A}")
        for twin in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):  # noqa: S301  our own bytes
            assert "5" == twin
            assert "${A}" == twin.template


class TestUnwrap:
    @pytest.mark.parametrize(
        ("config", "section"),
        [
            ({"postbus": {"a": 1}}, {"a": 1}),
            ({"postbus": None}, None),
            ({"a": 1}, {"a": 1}),
            ({"postbus": {}, "a": 1}, {"postbus": {}, "a": 1}),
            ({}, {}),
            (None, None),
            ("postbus", "postbus"),
        ],
    )
    def test_the_section_is_what_counts(self, config: Any, section: Any) -> None:
        """A dict whose only key is `postbus` is the section under it; all else stays."""
        assert section == unwrap(config)
