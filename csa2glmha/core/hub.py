"""Files of the Hugging Face Hub: `hf://owner/name/file.pth` in place of a path.

Only such an address connects to anything. The rest is that of huggingface_hub: its cache, its login, and its
environment variables such as HF_HUB_OFFLINE and HF_ENDPOINT.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.core.progress import is_first_process, say
from csa2glmha.core.text import one_line, shortened
from csa2glmha.core.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"
_ADDRESS = re.compile(
    r"hf://(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/]+))?/(?P<file>.+)"
)
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_FORM = "the form is hf://owner/name/file.pth, or hf://owner/name@revision/folder/file.pth"
#: Where huggingface_hub keeps a file: models--owner--name/snapshots/COMMIT/folder/file.pth.
_CACHED = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)$")
_WEIGHTS = (".pth", ".pt", ".ckpt", ".safetensors", ".onnx")
_LONGEST_REASON = 160
_LOG_IN = "log in with: hf auth login"


@dataclass(frozen=True)
class HubFile:
    """One file of a model repository.

    Attributes:
        repository: "owner/name".
        file: its path there.
        revision: a branch, tag or commit; None is the main branch.
    """

    repository: str
    file: str
    revision: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{SCHEME}{self.repository}{revision}/{self.file}"


def parse_address(text: str) -> HubFile:
    """Read "hf://owner/name@revision/folder/file.pth".

    Raises:
        UsageError: it is no such address.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise UsageError(f"{text}: names no file on the Hugging Face Hub; {_FORM}")
    if match["owner"] in ("datasets", "spaces"):
        raise UsageError(f"{text}: checkpoints are taken from model repositories only; {_FORM}")
    parts = match["file"].split("/")
    if "\\" in match["file"] or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{text}: {match['file']!r} is no path of a file in a repository; {_FORM}")
    revision = match["revision"]
    return HubFile(
        f"{match['owner']}/{match['name']}", match["file"], None if revision is None else unquote(revision)
    )


def check_repository(name: str) -> None:
    """Raise UsageError for what cannot be "owner/name"."""
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise UsageError(
            f"{shortened(one_line(name))!r}: is no name of a repository; the form is owner/name, of letters, "
            "digits, '-', '_' and '.'"
        )


def local_file(model: str | Path | HubFile) -> Path:
    """The path of a file of weights, downloaded first if its address is on the Hub.

    Args:
        model: a path, or an address such as "hf://owner/name/file.pth".

    Raises:
        UsageError: an address of another form, or huggingface_hub is not installed.
        CheckpointError: the file cannot be had; the message says why.
    """
    if isinstance(model, Path):
        # Path() makes one slash of two.
        if model.parts[:1] != ("hf:",) or model.exists():
            return model
        model = model.as_posix().replace("hf:/", SCHEME, 1)
    if isinstance(model, str):
        if not model.startswith(SCHEME):
            return Path(model)
        model = parse_address(model)
    return _download(model)


def source_of(path: Path) -> str | None:
    """The address of a downloaded file, with the commit it belongs to; None for other files."""
    match = _CACHED.search(path.as_posix())
    if match is None:
        return None
    owner, name, commit, file = match.groups()
    return f"{SCHEME}{owner}/{name}@{commit}/{file}"


def teacher_source(path: Path) -> dict[str, str]:
    """What the metadata of a student say of the place its teacher came from: nothing of local files."""
    source = source_of(path)
    return {} if source is None else {"teacher_source": source}


def repository_of(source: str) -> str:
    """The repository "owner/name" of an address that :func:`source_of` gave."""
    return parse_address(source).repository


def display_name(path: Path) -> str:
    """What to call a file: its address on the Hub, or its path."""
    return source_of(path) or str(path)


def beside(model: Path, name: str) -> Path:
    """The file ``name`` in the folder of a model; of a downloaded one in the current, not in the cache."""
    return model.with_name(name) if source_of(model) is None else Path(name)


def hub_api(what: str) -> HfApi:
    """What speaks to the Hub.

    Args:
        what: is asked of it, for the message.

    Raises:
        UsageError: huggingface_hub is not installed.
    """
    # Before the import, which reads it: no statistics on users.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
    except ImportError:
        raise UsageError(
            f"{what}: needs the huggingface_hub package; pip install csa2glmha[hub], or give the path of a "
            "file on this machine"
        ) from None
    constants.HF_HUB_DISABLE_TELEMETRY = True  # accelerate may have imported it before
    if not is_first_process():
        disable_progress_bars()
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return huggingface_hub.HfApi(endpoint=endpoint, library_name="csa2glmha", library_version=__version__)


def _download(wanted: HubFile) -> Path:
    api = hub_api(str(wanted))
    try:
        path = Path(api.hf_hub_download(wanted.repository, wanted.file, revision=wanted.revision))
    # The client below huggingface_hub, whose errors come through, is another one in every major version.
    except Exception as error:
        raise CheckpointError(f"{wanted}: {_why_not(error, wanted, api)}") from error
    say(f"{wanted}: {source_of(path) or path}")
    return path


def _why_not(error: Exception, wanted: HubFile, api: HfApi) -> str:
    """What is wrong with a download, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.HfHubHTTPError):  # it was reached, and refused
            return explain(error.__cause__, wanted.repository, api)
        return _unreachable(error, api)
    if isinstance(error, errors.EntryNotFoundError):
        return _no_such_file(wanted, api)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{wanted.repository} has no revision {wanted.revision!r}; give a branch, tag or commit of it"
    return explain(error, wanted.repository, api)


def explain(error: Exception, repository: str, api: HfApi) -> str:
    """What is wrong with a request about a repository, and what to do, in one line."""
    from huggingface_hub import errors

    page = f"{api.endpoint}/{repository}"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"no login of yours is known; {_LOG_IN}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is gated; ask for access at {page} and {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {repository}, or it is private; check the name, or {_LOG_IN}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to connect"
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        if status == 401:
            return f"the Hub does not know your login; {_LOG_IN}"
        if status == 403:
            return f"your login may not do this in {repository}; take one that may, or {_LOG_IN}"
        return f"the Hub answered with status {status} ({_one_line(error)}); try again later"
    if isinstance(error, errors.HFValidationError):
        return f"{repository!r} is no name of a repository; {_FORM}"
    return f"the connection to {api.endpoint} failed ({_one_line(error)}); check it and try again"


def _unreachable(error: Exception, api: HfApi) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return (
            "is not in the cache of huggingface_hub, and HF_HUB_OFFLINE is set; unset it, or give the path "
            "of a file on this machine"
        )
    reason = f" ({_one_line(error.__cause__)})" if error.__cause__ is not None else ""
    return (
        f"is not in the cache of huggingface_hub, and {api.endpoint} cannot be reached{reason}; check the "
        "connection, or give the path of a file on this machine"
    )


def _no_such_file(wanted: HubFile, api: HfApi) -> str:
    names: list[str] = []
    with contextlib.suppress(Exception):  # names are a help; the error at hand counts
        names = api.list_repo_files(wanted.repository, revision=wanted.revision)
    weights = [name for name in names if PurePosixPath(name).suffix.lower() in _WEIGHTS]
    close = difflib.get_close_matches(wanted.file, weights, n=3, cutoff=0.5)
    shown = ", ".join(repr(name) for name in close or weights[:5])
    place = f"{wanted.repository} has no file {wanted.file!r}"
    if not weights:
        return (
            f"{place}{', and none of weights' if names else ''}; look at {api.endpoint}/{wanted.repository}"
        )
    more = f" and {len(weights) - 5} more" if not close and len(weights) > 5 else ""
    return f"{place}; {'near names' if close else 'it has'}: {shown}{more}"


def _one_line(error: BaseException) -> str:
    return shortened(one_line(str(error)), _LONGEST_REASON) or type(error).__name__
