"""A hub on this machine: as much of the Hugging Face hub's protocol as reading models needs, and its ways of failing."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGE = (".safetensors", ".bin", ".pth", ".gguf")  # kept apart by the hub, behind a redirect to another host


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclasses.dataclass
class Repository:
    """Its revisions, each a commit and its files, and what is wrong with it."""

    revisions: dict[str, tuple[str, dict[str, bytes]]] = dataclasses.field(default_factory=dict)
    moved_to: str | None = None
    gated: bool = False  # the listing can be seen, the files can't, as on the hub
    status: int = 200  # of every answer
    large_status: int = 200  # of every answer about the content of a large file
    cut: int | None = None  # bytes of a large file after which the connection breaks
    garbled: bool = False  # large files arrive with other bytes
    ranges: bool = True

    def push(self, files: dict[str, bytes], *revisions: str) -> str:
        """A new commit that these revisions name from now on."""
        commit = hashlib.sha1(json.dumps({name: sha(content) for name, content in files.items()}).encode()).hexdigest()
        for revision in ("main", *revisions):
            self.revisions[revision] = commit, files
        self.revisions[commit] = commit, files
        return commit


@dataclasses.dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: bool  # it is authorised
    store: bool  # it is to the other host
    sent: int = 0  # bytes of content
    file: str | None = None


class Hub:
    """Attributes: ``repositories`` by name, and the ``log`` of requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.log: list[Request] = []
        self._servers = [self._start(_HubHandler), self._start(_StoreHandler)]
        self.endpoint, self.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def _start(self, kind: type[_Handler]) -> http.server.ThreadingHTTPServer:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (kind,), {"hub": self}))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, source: Path | dict[str, bytes], **how: Any) -> Repository:
        files = source if isinstance(source, dict) else {path.name: path.read_bytes() for path in source.iterdir()}
        self.repositories[name] = Repository(**how)
        self.repositories[name].push(files)
        return self.repositories[name]

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[Request]]:
        """The requests that come meanwhile."""
        before, log = len(self.log), []
        yield log
        log += self.log[before:]


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client may have seen enough
            super().handle()

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        token, store = self.headers["Authorization"] is not None, isinstance(self, _StoreHandler)
        self.request_ = Request(self.command, url.path, self.headers["Range"], token, store)
        self.hub.log.append(self.request_)
        self.answer([urllib.parse.unquote(part) for part in url.path.strip("/").split("/")])

    do_HEAD = do_GET

    def answer(self, parts: list[str]) -> None:
        raise NotImplementedError

    def reply(self, status: int, content: bytes = b"", *, length: int | None = None, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.request_.sent = len(content) if status < 300 else 0
            self.wfile.write(content)
        if length not in (None, len(content)):
            self.close_connection = True

    def refuse(self, status: int, code: str, message: str) -> None:
        self.reply(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)


class _HubHandler(_Handler):
    """The hub itself: what is there, small files, and where large ones are."""

    def answer(self, parts: list[str]) -> None:
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if repository.moved_to is not None:
            return self.reply(307, Location=self.path.replace(name, repository.moved_to))
        if repository.status != 200:
            return self.refuse(repository.status, "", "Internal Error")
        revision = rest[1] if rest else "main"
        if revision not in repository.revisions:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, files = repository.revisions[revision]
        if api:
            return self.list(name, commit, files, tree=rest[:1] == ["tree"])
        file = "/".join(rest[2:])
        self.request_.file = file
        if repository.gated:
            return self.refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
        if file not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        content = files[file]
        if not file.endswith(LARGE):
            return self.reply(200, content, ETag=f'"{sha(content)[:40]}"', X_Repo_Commit=commit)
        linked = {"X_Linked_ETag": f'"{sha(content)}"', "X_Linked_Size": len(content)}
        location = f"{self.hub.store}/{name}/{commit}/{urllib.parse.quote(file)}"
        return self.reply(302, Location=location, X_Repo_Commit=commit, **linked)

    def list(self, name: str, commit: str, files: dict[str, bytes], tree: bool) -> None:
        if not tree:
            siblings = [{"rfilename": file} for file in files]
            return self.reply(200, json.dumps({"id": name, "sha": commit, "siblings": siblings, "tags": []}).encode())
        entries = []
        for file, content in files.items():
            entry: dict[str, Any] = {"type": "file", "path": file, "size": len(content), "oid": sha(content)[:40]}
            if file.endswith(LARGE):
                entry["lfs"] = {"oid": sha(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return self.reply(200, json.dumps(entries).encode())


class _StoreHandler(_Handler):
    """The store of large files."""

    def answer(self, parts: list[str]) -> None:
        repository = self.hub.repositories["/".join(parts[:2])]
        content = repository.revisions[parts[2]][1]["/".join(parts[3:])]
        self.request_.file = "/".join(parts[3:])
        if repository.large_status != 200:
            return self.refuse(repository.large_status, "", "Slow down")
        if self.headers["Range"] is None or not repository.ranges:
            if repository.garbled:
                content = bytes(len(content))
            return self.reply(200, content[: repository.cut], length=len(content))
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        if not part:
            return self.reply(416, Content_Range=f"bytes */{len(content)}")
        shown = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        cut = None if repository.cut is None else max(0, repository.cut - int(first))
        return self.reply(206, part[:cut], length=len(part), Content_Range=shown)
