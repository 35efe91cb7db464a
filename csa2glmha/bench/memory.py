"""Peak memory of one model, measured in a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from csa2glmha.bench.candidates import Settings, open_candidates
from csa2glmha.config.network import NetworkOptions
from csa2glmha.core.child import ChildError, run_module
from csa2glmha.core.errors import Csa2GlmhaError
from csa2glmha.core.strict_json import dumps

_RUNS = 2
#: A model that has not run twice by then is given up.
_SECONDS = 600


@dataclass(frozen=True)
class Memory:
    """Bytes of a process that loads one model and runs it.

    Attributes:
        peak: largest resident size.
        model: of it, what loading and running the model took: the peak less Python and its libraries.
    """

    peak: int
    model: int


def measure_apart(path: Path, settings: Settings) -> Memory | str:
    """Measure in a new process; the reason if that fails, which must not spoil the timings.

    Args:
        path: of the model.
        settings: as for the timings, with the size.
    """
    request = {"path": str(path), "settings": _settings_to_json(settings)}
    try:
        answer = run_module("csa2glmha.bench.memory", [dumps(request)], _SECONDS)
        return Memory(**json.loads(answer.splitlines()[-1]))
    except ChildError as error:
        return str(error)
    except (ValueError, TypeError, IndexError):
        return "its process gave no answer"


def _settings_to_json(settings: Settings) -> dict[str, Any]:
    network = settings.network
    # All options of a command may stand there; these are what the other process needs of them.
    own = (
        None if network is None else network.model_dump(mode="json", include=set(NetworkOptions.model_fields))
    )
    return {**vars(settings), "network": own}


def _settings_from_json(values: dict[str, Any]) -> Settings:
    network, size = values["network"], values["size"]
    return Settings(
        **{
            **values,
            "size": None if size is None else tuple(size),
            "runtimes": tuple(values["runtimes"]),
            "network": None if network is None else NetworkOptions(**network),
        }
    )


def measure_here(path: Path, settings: Settings) -> Memory:
    """Measure in this process, which must not have done anything large before."""
    before = psutil.Process().memory_info().rss
    candidate = open_candidates([path], settings)[0]
    for _ in range(_RUNS):
        candidate.run()
    peak = peak_bytes()
    return Memory(peak, max(0, peak - before))


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # Not getrusage: that begins with the size of the process that started this one.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    """Measure what the argument asks for, and print the result as JSON."""
    request = json.loads(sys.argv[1])
    try:
        found = measure_here(Path(request["path"]), _settings_from_json(request["settings"]))
    except Csa2GlmhaError as error:
        sys.exit(str(error))
    print(dumps(asdict(found)))


if __name__ == "__main__":
    main()
