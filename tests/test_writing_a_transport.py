"""The transport of the guide keeps what the guide says of every transport."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/guides/writing-a-transport.md"


def test_the_transport_of_the_guide_passes_the_tests_of_the_guide(tmp_path: Path) -> None:
    """What a reader copies from the page, in two files, is a transport and its green run."""
    *code, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "postbus_table.py").write_text("\n".join(code), encoding="utf-8")
    imports = "from postbus_table import RECORD\n"
    (tmp_path / "test_table.py").write_text(imports + test, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert re.search(r"TestTable: asserted / refused / skipped = \d+ / \d+ / 0", done.stdout)
