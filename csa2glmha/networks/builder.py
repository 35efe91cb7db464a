"""The user's own network from the code that they named; that code is run."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from pydantic import JsonValue
from torch import nn

from csa2glmha.core.errors import NetworkError, UsageError
from csa2glmha.core.files import sha256_of
from csa2glmha.core.text import shown
from csa2glmha.core.users_code import described

#: What modules that were made from files are called, before a part of the checksum.
_PREFIX = "csa2glmha_users_file_"


@dataclass(frozen=True)
class Origin:
    """Where a network of the user's own came from.

    Attributes:
        builder: as it was named, "mypackage.archs:build" or "file.py:build", without the path to the file.
        arguments: keyword arguments that it was called with.
        sources: SHA-256 of the files with the builder and with the network's class, by the files' names.
    """

    builder: str
    arguments: Mapping[str, JsonValue]
    sources: Mapping[str, str]

    def changed_since(self, then: Origin) -> str | None:
        """In one line, what of the sources is not as it was then; None: nothing."""
        for name, before in then.sources.items():
            now = self.sources.get(name)
            if now != before:
                what = f"is SHA-256 {now[:12]} now" if now else "is not among the sources now"
                return f"the code has changed: {name} was SHA-256 {before[:12]}, and {what}"
        return None


def build_network(builder: str, arguments: Mapping[str, JsonValue]) -> tuple[nn.Module, Origin]:
    """Import what the user named, call it, and take the network that it returns.

    While that runs, the folder of the file and the working directory are on the import path: behind Python's
    own modules, before installed ones.

    Args:
        builder: "package.module:name" or "path/to/file.py:name".
        arguments: keywords of the call.

    Returns:
        The network in eval mode, float32, on the CPU, and its origin.

    Raises:
        UsageError: there is no such file or name, or it returns no network.
        NetworkError: the user's code fails; the message is theirs.
    """
    where, _, name = builder.rpartition(":")
    with _import_path(where):
        try:
            module = _module(where, builder)
            make = _named(module, name, builder)
            _check_arguments(make, arguments, builder)
            network = make(**arguments)
        except (UsageError, NetworkError):
            raise
        except (Exception, SystemExit) as error:
            raise NetworkError(f"--network {shown(builder)}: {described(error)}") from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"--network {shown(builder)}: returns a {type(network).__name__}, no nn.Module; name what builds "
            "the network"
        )
    network = network.to("cpu", torch.float32).eval()
    return network, Origin(Path(builder).name, dict(arguments), _sources(module, make, network))


def label_of(network: nn.Module) -> str:
    """What to call a network: its module's and its class's name, such as "archs.PromptIR"."""
    kind = type(network)
    module = kind.__module__
    if module.startswith(_PREFIX):
        file = getattr(sys.modules.get(module), "__file__", None)
        module = Path(file).stem if file else module
    return f"{module.rpartition('.')[2]}.{kind.__qualname__}"


def _module(where: str, builder: str) -> ModuleType:
    """The module of that name, or of that file."""
    if not where.endswith(".py"):
        if "/" in where or "\\" in where:
            raise UsageError(f"--network {shown(builder)}: {shown(where)} is no .py file; add the suffix")
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            # One that the user's code misses is an error of that code.
            if error.name is not None and f"{where}.".startswith(f"{error.name}."):
                raise NetworkError(
                    f"--network {shown(builder)}: there is no module {error.name!r}, neither installed nor "
                    "in the working directory"
                ) from error
            raise
    path = Path(where)
    if not path.is_file():
        raise UsageError(f"--network {shown(builder)}: there is no file {shown(where)}; check the path")
    return _from_file(path)


def _from_file(path: Path) -> ModuleType:
    """The same module for the same content, so that its classes are the same, too."""
    content = hashlib.sha256(f"{path.resolve()}\0{sha256_of(path)}".encode()).hexdigest()
    name = _PREFIX + content[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _named(module: ModuleType, name: str, builder: str) -> Callable[..., object]:
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [each for each, value in vars(module).items() if _is_builder(value, module)]
            near = difflib.get_close_matches(part[:100], names[:1000], n=1)
            known = f"it has {', '.join(names[:5])}" if names else "it has none of its own"
            meant = f"is {near[0]} meant? " if near else ""
            raise UsageError(f"--network {shown(builder)}: there is no {name!r} in it; {meant}{known}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise UsageError(
            f"--network {shown(builder)}: {name} is a {type(found).__name__}; name a class or a function "
            "that returns an nn.Module"
        )
    return found


def _check_arguments(make: Callable[..., object], arguments: Mapping[str, JsonValue], builder: str) -> None:
    """Raise UsageError for names that the builder does not take, and for those that it misses."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # some written in C have none
        return
    if any(each.kind is each.POSITIONAL_ONLY and each.default is each.empty for each in parameters):
        return  # only its own error says what it is called with
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    names = [each.name for each in named]
    takes = f"it takes {', '.join(names)}" if names else "it takes no arguments"
    unknown = [name for name in arguments if name not in names]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in parameters):
        near = difflib.get_close_matches(unknown[0][:100], names, n=1)
        meant = f"is {near[0]} meant? " if near else ""
        raise UsageError(f"--network-arg {unknown[0]}: {shown(builder)} has no such argument; {meant}{takes}")
    missing = [each.name for each in named if each.default is each.empty and each.name not in arguments]
    if missing:
        raise UsageError(
            f"--network {shown(builder)}: needs a value for {', '.join(missing)}; give --network-arg "
            f"{missing[0]}=..., {takes}"
        )


def _is_builder(value: object, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _sources(module: ModuleType, make: object, network: nn.Module) -> dict[str, str]:
    files = [getattr(module, "__file__", None)]
    for each in (make, type(network)):
        with contextlib.suppress(TypeError, OSError):
            files.append(inspect.getsourcefile(each))  # type: ignore[arg-type]
    paths = [Path(file) for file in files if file is not None]
    return {path.name: sha256_of(path) for path in paths if path.is_file()}


@contextlib.contextmanager
def _import_path(where: str) -> Iterator[None]:
    """With the file's folder and the working directory on it."""
    before, library = list(sys.path), Path(os.__file__).parent
    own = [str(Path(where).resolve().parent)] if where.endswith(".py") else []
    own += [each for each in [str(Path.cwd())] if each not in own]
    # Python's own modules come first: a json.py that lies there must not take the place of Python's.
    standard = {str(library), str(library / "lib-dynload")}
    first = max((index for index, entry in enumerate(before) if entry in standard), default=-1) + 1
    sys.path[first:first] = [each for each in own if each not in before]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for each in own:
            if each not in before and each in sys.path:
                sys.path.remove(each)
