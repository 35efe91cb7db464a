"""What has to be set before PyTorch and ONNX Runtime are loaded, and how many CPUs there are to use.

Imports nothing but what Python has loaded at its start: where the folder that a program was started in is
on the import path, each further import could run a file of that folder (hence also no pathlib).
"""

import os
import sys

#: How threads wait for each other: asleep. Where other programs compete for the CPUs, one that waits
#: in a busy loop takes the time of the very thread that it waits for, and training takes ten times as
#: long. With GNU's OpenMP (Linux) they first look a thousand times, some 50 microseconds: that costs
#: nothing beside other programs, and without it a training on an idle machine takes a quarter longer.
#: The last is for the OpenMP of Intel and LLVM (macOS, Windows).
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
#: The user has said how to wait if any of these is set.
_WAITING_SAID = (*WAITING, "KMP_LIBRARY")
#: ONNX Runtime from 1.29 on, except on Windows, otherwise sends its maker facts about models and machine.
PRIVACY = {"ORT_DISABLE_TELEMETRY": "1"}
#: On Linux PyTorch then takes large maps in huge pages: a third of a full-size network's time went into page
#: faults otherwise.
_HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}

_CGROUPS = "/sys/fs/cgroup"


def prepare() -> None:
    """Set in this process's environment what is to be set; nothing that the user has set is changed.

    Child processes inherit it. Where PyTorch is loaded already, its threads are left as they are.
    """
    for name, value in PRIVACY.items():
        os.environ.setdefault(name, value)
    if "torch" in sys.modules:
        return
    for name, value in _HUGE_PAGES.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in _WAITING_SAID):
        os.environ.update(WAITING)
    # PyTorch knows the CPUs that a process may run on, but not the share of their time that it may use.
    if "OMP_NUM_THREADS" not in os.environ and _quota() < _allowed():
        os.environ["OMP_NUM_THREADS"] = str(thread_count())


def leave_start_folder() -> None:
    """Take the folder that the command line was started in off the import path.

    ``python -m csa2glmha`` puts it first, so that a file json.py that lies there is run in place of Python's
    own. Does nothing in other programs, to which their folders belong.
    """
    if _is_command_line():
        sys.path[:] = import_path()


def import_path() -> list[str]:
    """This process's import path without the working directory, unless the user's PYTHONPATH names it."""
    here = os.getcwd()
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    named = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    library = os.path.dirname(os.__file__)
    # Behind Python's own library nothing takes the place of its modules, and what is there was installed.
    first = sys.path.index(library) if library in sys.path else len(sys.path)
    found = [
        entry
        for index, entry in enumerate(sys.path)
        if entry and (entry != here or index >= first or here in named)
    ]
    # A copy of this package that is run in place, without being installed, is found all the same.
    if not any(os.path.isfile(os.path.join(entry, "csa2glmha", "__init__.py")) for entry in found):
        found.append(home)
    return found


def _is_command_line() -> bool:
    if sys.argv[:1] == ["-m"]:  # Python is looking for the module; what it is called comes next
        return any(word.partition(".")[0] == "csa2glmha" for word in sys.orig_argv)
    return bool(sys.argv) and os.path.basename(sys.argv[0]).startswith("csa2glmha")


def cpu_count() -> int:
    """CPUs that this process may use: by its affinity, and by the quota of its container, rounded up."""
    return min(_allowed(), _quota())


def thread_count() -> int:
    """Threads to compute with: the user's OMP_NUM_THREADS, or one for each core that may be used."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if said.isdecimal() and int(said) > 0:
        return int(said)
    import psutil

    # Two threads on one core only get in each other's way: both runtimes take one a core, too.
    return min(cpu_count(), psutil.cpu_count(logical=False) or sys.maxsize)


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: str = _CGROUPS, membership: str = "/proc/self/cgroup") -> int:
    """CPUs whose time the control groups of Linux grant, rounded up; very many where there is no limit.

    Args:
        root: where the control groups are mounted, of version 2 or, below "cpu", 1.
        membership: file that names this process's groups.
    """
    limits = [sys.maxsize]
    for folder in _groups(root, membership):
        # Version 2: "QUOTA PERIOD" in microseconds, or "max PERIOD". Version 1: a file each, -1 for no limit.
        words = (_read(f"{folder}/cpu.max") or "").split()
        if not words:
            words = [_read(f"{folder}/cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        try:
            quota, period = (int(word) for word in words)
        except ValueError:
            continue
        if quota > 0 and period > 0:
            limits.append(-(-quota // period))
    return min(limits)


def _groups(root: str, membership: str) -> list[str]:
    """Folders of this process's groups and of all groups around them: each of them may limit."""
    found = []
    for line in (_read(membership) or "").splitlines():
        # "4:cpu,cpuacct:/a/b" in version 1, "0::/a/b" in version 2.
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [f"{root}/{controllers}", f"{root}/cpu"] if controllers else [root, f"{root}/unified"]
        parts = [part for part in path.split("/") if part and part != ".."]
        for mount in mounts:
            # Inside a container its own group is mounted as the root, whatever the path outside.
            found += ["/".join((mount, *parts[:length])) for length in range(len(parts) + 1)]
    return found


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, ValueError):
        return None
