"""A stand-in for the Hub on this machine: the part of its HTTP interface that huggingface_hub 1 and 2 use.

Models and data sets share their names here.

Repositories live in memory, with commits, branches, private and gated ones; weights take the LFS route. A client is
pointed here by variables that huggingface_hub reads when it is imported. conftest sets them, so that no test, and no
process that a test starts, reaches the real Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".pt")
Files = dict[str, bytes]


def sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """The files of every commit, newest last; `refs` are branches and tags, `private` and `gated` close it."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, message: str, branch: str = "main") -> str:
        commit = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[commit] = files
        self.messages.append(message)
        self.refs[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class HubError(Exception):
    """An answer with the two headers from which huggingface_hub tells its errors apart."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class LoopbackHub(ThreadingHTTPServer):
    """Serves `repositories`; `users` maps tokens to names, `requests` says what was asked for."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, users: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.users = users
        self.repositories: dict[str, Repository] = {}
        self.blobs: Files = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def main(self) -> dict[str, Files]:
        """The newest files of every repository."""
        return {name: repo.commits[repo.refs["main"]] for name, repo in self.repositories.items()}

    def start(self) -> LoopbackHub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def environment(self, home: str | Path) -> dict[str, str]:
        """Variables for a client process that keeps its cache and its modules in `home` and has not signed in."""
        places = {"HF_HUB_CACHE": "hub", "HF_MODULES_CACHE": "modules", "HF_TOKEN_PATH": "token"}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {
            "HF_ENDPOINT": self.url,
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            **{variable: str(Path(home, name)) for variable, name in places.items()},
            **quiet,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    # --- one request --------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        parts = urlsplit(self.path)
        self.query, path = parse_qs(parts.query), parts.path
        self.body = self._read()
        self.server.requests.append(f"{self.command} {path}")
        try:
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method in (self.command, "GET" if self.command == "HEAD" else ""):
                    answer(self, *map(unquote, match.groups()))
                    return
            raise HubError(HTTPStatus.NOT_FOUND, "", f"no route for {self.command} {path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            self._send({"error": error.message}, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _dispatch

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, content: Any, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass

    # --- who may do what ----------------------------------------------------------------------------------------------

    @property
    def _user(self) -> str | None:
        return self.server.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _signed_in(self) -> str:
        if self._user is None:
            raise HubError(HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
        return self._user

    def _repository(self, repo_id: str) -> Repository:
        """A private repository that is not yours does not exist, to whoever has not signed in nothing closed does."""
        repo, is_owner = self.server.repositories.get(repo_id), repo_id.split("/")[0] == self._user
        if repo is None or (repo.private and not is_owner):
            status = HTTPStatus.UNAUTHORIZED if self._user is None else HTTPStatus.NOT_FOUND
            raise HubError(status, "RepoNotFound", "Repository not found")
        return repo

    def _own(self, repo_id: str) -> Repository:
        if repo_id.split("/")[0] != self._signed_in():
            raise HubError(HTTPStatus.FORBIDDEN, "", f"You may not write to {repo_id}")
        return self._repository(repo_id)

    def _files(self, repo_id: str, revision: str) -> tuple[str, Files]:
        repo = self._repository(repo_id)
        commit = repo.find(revision)
        if commit is None:
            raise HubError(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repo.commits[commit]

    # --- the routes ---------------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        self._send({"type": "user", "name": self._signed_in(), "orgs": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self._signed_in()}/{asked['name']}"
        if repo_id.split("/")[0] != self._signed_in():
            raise HubError(HTTPStatus.FORBIDDEN, "", f"You may not create {repo_id}")
        url = {"url": f"{self.server.url}/{repo_id}"}
        if repo_id in self.server.repositories:
            self._send(url | {"error": "You already created this model repo"}, HTTPStatus.CONFLICT)
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        repo = self.server.repositories[repo_id] = Repository(private=bool(private))
        repo.commit({".gitattributes": b""}, "initial commit")
        self._send(url)

    def validate_yaml(self) -> None:
        front_matter = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            yaml.safe_load(front_matter[1] if front_matter else "")
            self._send({"errors": [], "warnings": []})
        except yaml.YAMLError as error:
            self._send({"errors": [{"message": str(error)}], "warnings": []}, HTTPStatus.BAD_REQUEST)

    def info(self, repo_id: str, revision: str = "main") -> None:
        commit, files = self._files(repo_id, revision)
        repo = self._repository(repo_id)
        siblings = [{"rfilename": path} for path in sorted(files)]
        about = {"id": repo_id, "modelId": repo_id, "sha": commit, "private": repo.private, "siblings": siblings}
        self._send(about | {"gated": "auto" if repo.gated else False, "tags": [], "downloads": 0})

    def tree(self, repo_id: str, revision: str) -> None:
        entries = []
        for path, content in sorted(self._files(repo_id, revision)[1].items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": sha1(content)}
            if path.endswith(LFS_SUFFIXES):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._send(entries)

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo, (commit, files) = self._repository(repo_id), self._files(repo_id, revision)
        if repo.gated and repo_id.split("/")[0] != self._user:
            status = HTTPStatus.UNAUTHORIZED if self._user is None else HTTPStatus.FORBIDDEN
            raise HubError(status, "GatedRepo", f"Access to model {repo_id} is restricted.")
        if path not in files:
            raise HubError(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        content = files[path]
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LFS_SUFFIXES) else sha1(content)
        self._send(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def preupload(self, repo_id: str, revision: str) -> None:
        files = self._own(repo_id).commits[self._files(repo_id, revision)[0]]
        answer = []
        for file in json.loads(self.body)["files"]:
            path, is_large = file["path"], file["path"].endswith(LFS_SUFFIXES) or file["size"] >= 10_000_000
            oid = sha1(files[path]) if path in files and not is_large else None
            answer.append(
                {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._send({"files": answer})

    def lfs_batch(self, repo_id: str) -> None:
        self._own(repo_id)
        objects = [
            {**file, "actions": {"upload": {"href": f"{self.server.url}/lfs/{file['oid']}"}}}
            for file in json.loads(self.body)["objects"]
        ]
        self._send({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(HTTPStatus.BAD_REQUEST, "", f"{oid} is not the sha256 of what was sent")
        self.server.blobs[oid] = self.body
        self._send({})

    def commit(self, repo_id: str, revision: str) -> None:
        repo, lines = self._own(repo_id), [json.loads(line) for line in self.body.splitlines() if line]
        files = dict(self._files(repo_id, revision)[1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            else:
                raise HubError(HTTPStatus.BAD_REQUEST, "", f"unknown operation {line['key']}")
        is_request = "create_pr" in self.query
        branch = f"refs/pr/{sum(ref.startswith('refs/pr/') for ref in repo.refs) + 1}" if is_request else revision
        commit = repo.commit(files, lines[0]["value"]["summary"], branch)
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{repo_id}/commit/{commit}"}
        if is_request:
            answer["pullRequestUrl"] = f"{self.server.url}/{repo_id}/discussions/{branch.rsplit('/')[-1]}"
        self._send(answer)

    def branch(self, repo_id: str, name: str) -> None:
        repo = self._own(repo_id)
        repo.refs[name] = self._files(repo_id, json.loads(self.body or b"{}").get("startingPoint") or "main")[0]
        self._send({})


ID = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", rf"/api/(?:models|datasets)/{ID}", _Handler.info),
    ("GET", rf"/api/(?:models|datasets)/{ID}/revision/([^/]+)", _Handler.info),
    ("GET", rf"/api/(?:models|datasets)/{ID}/tree/([^/]+)", _Handler.tree),
    ("POST", rf"/api/(?:models|datasets)/{ID}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/api/(?:models|datasets)/{ID}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"/api/(?:models|datasets)/{ID}/branch/([^/]+)", _Handler.branch),
    ("POST", rf"/(?:datasets/)?{ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.lfs_put),
    ("GET", rf"/(?:datasets/)?{ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
]

HUB = LoopbackHub(users={"owner": "me", "stranger": "you"}).start()
HOME = TemporaryDirectory(prefix="hf_maskdiff_tests_")
