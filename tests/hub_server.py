"""A stand-in for the Hugging Face Hub on this machine: as much of its API as downloads and uploads need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

#: Files of these suffixes go through Git LFS.
LFS_SUFFIXES = (".safetensors", ".onnx", ".png")
#: The one that may write.
TOKEN = "hf_stand_in"


def commit_of(number: int) -> str:
    """A commit's name: 40 hexadecimal digits."""
    return f"{number:040x}"


@dataclass
class Repository:
    """One repository: its commits from the first to the last, each with all its files.

    Attributes:
        commits: files by name.
        revisions: numbers of commits by the names of branches and tags, except the main branch.
        private: not shown to others.
        gated: shown, and not given.
    """

    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    revisions: dict[str, int] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def number(self, revision: str) -> int | None:
        """Of the commit that a branch, tag or commit's name means."""
        if revision == "main":
            return len(self.commits) - 1
        names = {commit_of(number): number for number in range(len(self.commits))}
        return (names | self.revisions).get(revision)

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the main branch."""
        return self.commits[-1]


@dataclass
class Hub:
    """What the server has, and what it was asked.

    Attributes:
        address: of the server.
        repositories: by "owner/name".
        requests: method and path of each, in order.
        headers: of each.
        status: to answer everything with; 0 answers as it should be.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    status: int = 0


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the stand-in while the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.headers.append({name.lower(): value for name, value in self.headers.items()})
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.status:
            return self._answer(self.hub.status, {"error": "as the test wants it"})
        parts = path.split("/")
        if path == "api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.command in ("POST", "PUT") and self._token != TOKEN and parts[0] != "lfs":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if parts[0] == "lfs":
            self.hub.blobs[parts[1]] = body
            return self._answer(200, {})
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self._token != TOKEN):
            return self._answer(401, {"error": "Repository not found"}, code="RepoNotFound")
        if parts[0] == "api":
            return self._api(name, repository, parts[4:], body)
        if parts[2:3] == ["resolve"]:
            return self._resolve(repository, "/".join(parts[3:]))
        if parts[-3:] == ["lfs", "objects", "batch"]:
            return self._batch(json.loads(body))
        return self._answer(404, {"error": path})

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _answer(self, status: int, content: Any, code: str = "", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        url = f"{self.hub.address}/{name}"
        if name in self.hub.repositories:
            return self._answer(409, {"error": "You already created this model repo", "url": url})
        # By the one name or the other, as the version of huggingface_hub has it.
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository([{".gitattributes": b""}], {}, private)
        return self._answer(200, {"url": url, "name": name})

    def _resolve(self, repository: Repository, rest: str) -> None:
        revision, _, file = rest.partition("/")
        if revision == "refs":  # refs/pr/1
            kind, number, file = file.split("/", 2)
            revision = f"refs/{kind}/{number}"
        if repository.gated and self._token != TOKEN:
            return self._answer(403, {"error": "Access is restricted"}, code="GatedRepo")
        index = repository.number(revision)
        if index is None:
            return self._answer(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
        commit = commit_of(index)
        if file not in repository.commits[index]:
            return self._answer(404, {"error": "no entry"}, code="EntryNotFound", X_Repo_Commit=commit)
        data = repository.commits[index][file]
        return self._answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=commit)

    def _api(self, name: str, repository: Repository, rest: list[str], body: bytes) -> None:
        if rest[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for each in files
            ]
            return self._answer(200, {"files": modes})
        if rest[:1] == ["commit"]:
            return self._commit(name, repository, body)
        revision = "/".join(rest[1:]) or "main"
        number = repository.number(revision)
        if number is None:
            return self._answer(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
        files = repository.commits[number]
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": each, "size": len(data), "oid": "0"} for each, data in files.items()
            ]
            return self._answer(200, tree)
        siblings = [{"rfilename": each} for each in files]
        info = {"id": name, "sha": commit_of(number), "private": repository.private, "siblings": siblings}
        return self._answer(200, info | {"tags": [], "downloads": 0, "gated": repository.gated})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}"}}}
            for each in wanted["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        files = dict(repository.files)
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                parent = value.get("parentCommit")
                if parent not in (None, commit_of(len(repository.commits) - 1)):
                    return self._answer(412, {"error": "A commit has happened since."})
                self.hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        repository.commits.append(files)
        commit = commit_of(len(repository.commits) - 1)
        url = f"{self.hub.address}/{name}/commit/{commit}"
        return self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url})
