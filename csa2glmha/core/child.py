"""Python modules run in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from csa2glmha.core.environment import import_path
from csa2glmha.core.errors import Csa2GlmhaError


class ChildError(Csa2GlmhaError):
    """A child process did not do its work; the message is the reason alone."""


def run_module(module: str, arguments: Sequence[str], seconds: float) -> str:
    """Run a module as ``python -m`` does, but for the working directory, which it cannot import from.

    Args:
        module: its name.
        arguments: of its command line.
        seconds: it may take.

    Returns:
        What it wrote to standard output.

    Raises:
        ChildError: it could not be started, failed, crashed or took too long.
    """
    # Not -P, which Python 3.10 has not, nor -I, which would forget PYTHONPATH and the user's packages.
    code = (
        f"import sys; sys.path[:] = {import_path()!r}; "
        f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"it took longer than {seconds:.0f} seconds") from error
    except OSError as error:
        raise ChildError(f"no process could be started ({error.strerror or error})") from error
    if done.returncode == 0:
        return done.stdout
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1][:300] if lines else "nothing was said"
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise ChildError(f"{reason} ({how})")
