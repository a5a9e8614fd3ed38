"""A small server of the hub's protocol on localhost: the requests of huggingface_hub's client, and faults."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """The files of each commit, and the commits of branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.refs[ref] = files, sha
        return sha

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class Hub(ThreadingHTTPServer):
    """Attributes:

    repositories: by owner/name.
    requests: "METHOD path" of every request received.
    token: token needed for reading; None: reading needs no token.
    fault: called with the handler before a request is answered. It returns True if it has answered.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.token: str | None = None
        self.fault: Callable[[Handler], bool] = lambda handler: False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, folder: Path, ref: str = "main", **more: bytes) -> str:
        """Commits the files of a folder, and further files; returns the commit."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        return self.repositories.setdefault(name, Repository()).commit(files | more, ref)

    def fetched(self) -> list[str]:
        """The files that were downloaded, in order, without their commits."""
        return [
            r.split("/resolve/")[1].partition("/")[2] for r in self.requests if r.startswith("GET") and "/resolve/" in r
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.requests.append(f"{self.command} {unquote(urlsplit(self.path).path)}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.fault(self):
            return
        if self.server.token is not None and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.say(401, code="RepoNotFound", headers={"X-Error-Message": "Invalid username or password."})
            return
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            self.server.repositories.setdefault(name, Repository()).commit({})
            self.say(200, {"url": f"{self.server.url}/{name}"})
        elif parts == ["api", "validate-yaml"]:  # the beginning of a card
            self.say(200, {"errors": [], "warnings": []})
        elif parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:], body)
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.say(404)

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.say(404, code="RepoNotFound")
        what, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
        sha = repository.find(revision)
        if sha is None:
            return self.say(404, code="RevisionNotFound")
        files = repository.commits[sha]
        if what == "revision":
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
            return self.say(200, {"id": name, "sha": sha, "siblings": siblings})
        if what == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                for path, content in files.items()
            ]
            return self.say(200, entries)
        if what == "preupload":
            wanted = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]
            return self.say(200, {"files": modes})
        assert what == "commit"
        lines = [json.loads(line) for line in body.splitlines()]
        new = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        sha = repository.commit(files | new, revision)
        self.say(200, {"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha, "hookOutput": ""})

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self.server.repositories.get(name)
        if repository is None or (sha := repository.find(revision)) is None:
            return self.say(404, code="RepoNotFound" if repository is None else "RevisionNotFound")
        if (content := repository.commits[sha].get(path)) is None:
            return self.say(404, code="EntryNotFound", headers={"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.say(206 if start else 200, content[start:], headers=headers)

    def say(
        self, status: int, content: object = b"", *, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A server that runs until the end of the block."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
