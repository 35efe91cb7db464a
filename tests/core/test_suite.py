"""What the tests say about themselves."""

from __future__ import annotations

import re
from pathlib import Path


def test_what_is_called_slow_is_there() -> None:
    """A name in slow.txt that is no longer one of a test or a fixture would mark nothing."""
    tests = Path(__file__).parents[1]
    files = {path.name: path for path in tests.rglob("test_*.py")}
    shared = "".join(path.read_text(encoding="utf-8") for path in tests.rglob("conftest.py"))
    for line in (tests / "slow.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            file, name = line.split("::")
            function = re.escape(name.partition("[")[0])
            code = files[file].read_text(encoding="utf-8") + shared
            assert re.search(rf"^def {function}\(", code, re.MULTILINE), line
