"""A hub on 127.0.0.1: what huggingface_hub and datasets ask of the real one, with the real one's error headers."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    import pytest


@dataclass
class Repo:
    """One repository with one commit.

    Attributes:
        files: their contents by name.
        revisions: branches and tags that point at the commit.
        gated: the listing is public, the files need a token that was granted access.
        private: not even its existence is public.
        cut_after: drop the connection when this many bytes of a file were sent, None for never.
        cuts: how many times to do so.
        status: answer every request for a file with this status instead.
        answer: answers a request for a file instead, given its bytes and the handler; returns whether it did.
    """

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    private: bool = False
    cut_after: int | None = None
    cuts: int = sys.maxsize
    status: int | None = None
    answer: Callable[[bytes, BaseHTTPRequestHandler], bool] | None = None

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()


@dataclass
class HubStandIn:
    """Serves `repos` while used as a context manager, and records what was asked.

    The key of a model is `org/name`, that of a dataset `datasets/org/name`, as in the hub's own addresses.
    """

    repos: dict[str, Repo]
    granted: str = "hf_granted"
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def replace_the_real_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In this process."""
        # The hub's address is read when this is imported: a program that sets HF_ENDPOINT may not have done so yet.
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def environment(self, home: Path) -> dict[str, str | None]:
        """Variables of a process that is to know no other hub and keeps its files in `home`; None takes one out."""
        forgotten = {name: None for name in os.environ if name.startswith("HF_")}
        return forgotten | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}

    def downloads(self) -> list[str]:
        """Files whose content was asked for, in order."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for verb, path in self.requests
            if verb == "GET" and "/resolve/" in path
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        elif path.startswith("/api/datasets/"):
            self._api(path.removeprefix("/api/"))
        elif "/resolve/" in path:
            repo_id, _, rest = path[1:].partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._resolve(repo_id, revision, name)
        else:
            self._error(404, "EntryNotFound", "no such route")

    def _repo(self, repo_id: str, revision: str) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self._granted()):
            self._error(401, "RepoNotFound", "Repository not found")
        elif revision not in (*repo.revisions, repo.commit):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo
        return None

    def _granted(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.granted}"

    def _api(self, rest: str) -> None:
        for route in ("revision", "tree", "paths-info"):
            repo_id, found, revision = rest.partition(f"/{route}/")
            if found:
                break
        else:
            repo_id, route, revision = rest, "revision", "main"
        folder = ""
        known = self.hub.repos.get(repo_id)
        for name in () if known is None else (*known.revisions, known.commit):
            if revision.startswith(f"{name}/"):
                revision, folder = name, revision.removeprefix(f"{name}/")
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        if route == "tree":
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            entries = [e for e in _entries(repo) if _lies_in(e["path"], folder, recursive)]
            if folder and not entries:
                self._error(404, "EntryNotFound", f"{folder} does not exist")
            else:
                self._json(entries)
        elif route == "paths-info":
            wanted = {path.rstrip("/") for path in self._posted()["paths"]}
            self._json([e for e in _entries(repo) if e["path"] in wanted])
        else:
            siblings = [{"rfilename": name} for name in repo.files]
            bare = repo_id.removeprefix("datasets/")
            self._json({"id": bare, "modelId": bare, "sha": repo.commit, "siblings": siblings, "tags": []})

    def _posted(self) -> dict[str, list[str]]:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        if repo.gated and not self._granted():
            self._error(403 if "Authorization" in self.headers else 401, "GatedRepo", "Access is restricted")
        elif repo.status is not None:
            self._error(repo.status, None, "the stand-in was told to")
        elif name not in repo.files:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repo.commit})
        else:
            self._file(repo, repo.files[name])

    def _file(self, repo: Repo, data: bytes) -> None:
        if repo.answer is not None and repo.answer(data, self):
            return
        start, end = 0, len(data)
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
        if start >= len(data) > 0:
            self._error(416, None, "Range Not Satisfiable")
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("ETag", f'"{_sha256(data)}"')
        self.send_header("X-Linked-Etag", f'"{_sha256(data)}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = end
        if repo.cut_after is not None and repo.cut_after < stop and repo.cuts > 0:
            stop, repo.cuts = repo.cut_after, repo.cuts - 1
            self.close_connection = True  # with fewer bytes than the header promised
        self.wfile.write(data[start:stop])

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@lru_cache(maxsize=64)
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entries(repo: Repo) -> list[dict[str, object]]:
    """Files and folders of a repository, as the hub lists them."""
    folders = {parent.as_posix() for name in repo.files for parent in PurePosixPath(name).parents} - {"."}
    found: list[dict[str, object]] = [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in folders]
    for name, data in repo.files.items():
        found.append({"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()})
    return sorted(found, key=lambda entry: str(entry["path"]))


def _lies_in(path: object, folder: str, recursive: bool) -> bool:
    parents = [parent.as_posix().removeprefix(".") for parent in PurePosixPath(str(path)).parents]
    return folder in parents if recursive else parents[0] == folder
