"""A model hub on 127.0.0.1: what huggingface_hub asks of the real one, with the real one's error headers."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit


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
    """

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    private: bool = False
    cut_after: int | None = None
    cuts: int = sys.maxsize
    status: int | None = None

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()


@dataclass
class HubStandIn:
    """Serves `repos` while used as a context manager, and records what was asked."""

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

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
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
        for route in ("/revision/", "/tree/"):
            repo_id, found, revision = rest.partition(route)
            if found:
                break
        else:
            repo_id, revision = rest, "main"
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        if "/tree/" in rest:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in repo.files.items()
            ]
            self._json(entries)
        else:
            siblings = [{"rfilename": name} for name in repo.files]
            self._json({"id": repo_id, "modelId": repo_id, "sha": repo.commit, "siblings": siblings, "tags": []})

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
        start = 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = len(data)
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
        if self.command == "GET":
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
