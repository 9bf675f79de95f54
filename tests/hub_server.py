"""A stand-in of the Hub on loopback that speaks its HTTP API: listings, redirects, ranges, ETags, tokens, uploads.

    with Hub({"org/name": {"config.json": b"{}", "model.safetensors": weights}}) as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path)})

Files that end with .safetensors or .bin are large files, as on the Hub: asked for, they redirect to another place.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = (".safetensors", ".bin")
TOKEN = "hf_right"


class Hub(ThreadingHTTPServer):
    """Repositories in memory; a large file may be a `memoryview` of a mapped one.

    gated: names of repositories whose files need the token.
    broken: number of times that a transfer of a large file stops in the middle.
    seen: method, path and range of every request.
    """

    daemon_threads = True

    def __init__(self, repos, gated=(), broken=0, revisions=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = {name: dict(files) for name, files in repos.items()}
        self.revisions = revisions or {}  # (repo, revision): files
        self.gated, self.broken, self.seen, self.large = set(gated), broken, [], {}
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def environment(self, home: Path, **more) -> dict[str, str]:
        """Variables that lead huggingface_hub here, with a cache of its own."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **more}

    def files(self, repo: str, revision: str):
        """The files of a revision; None if there is none."""
        if revision in ("main", self.commit(repo, "main")):
            return self.repos.get(repo)
        for (name, known), files in self.revisions.items():
            if name == repo and revision in (known, self.commit(repo, known)):
                return files
        return None

    @staticmethod
    def commit(repo: str, revision: str) -> str:
        return hashlib.sha1(f"{repo} {revision}".encode()).hexdigest()

    def downloads(self) -> list[str]:
        """Names of the files whose bytes were asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.seen if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def reply(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes | memoryview) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_one(self):
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.seen.append((self.command, path, self.headers.get("Range")))
        content = self.body()
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, path):
                return method(self, content, *found.groups())
        return self.reply(404, {"error": f"nothing at {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_one  # noqa: N815

    # -- reading -------------------------------------------------------------------------------------------------------
    def refused(self, repo, revision) -> bool:
        token = self.headers.get("Authorization")
        if repo not in self.server.repos:
            self.reply(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound", X_Error_Message="no")
        elif repo in self.server.gated and token != f"Bearer {TOKEN}":
            self.reply(401, {"error": "gated"}, X_Error_Code="GatedRepo", X_Error_Message="gated")
        elif self.server.files(repo, revision) is None:
            self.reply(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound", X_Error_Message="no")
        else:
            return False
        return True

    def info(self, _, repo, __, revision):
        revision = revision or "main"
        if not self.refused(repo, revision):
            files = [{"rfilename": name} for name in self.server.files(repo, revision)]
            sha = revision if len(revision) == 40 else self.server.commit(repo, revision)
            self.reply(200, {"id": repo, "sha": sha, "siblings": files, "private": False, "tags": []})

    def tree(self, _, repo, revision):
        if not self.refused(repo, revision):
            listed = []
            for name, content in self.server.files(repo, revision).items():
                entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                if name.endswith(LARGE):
                    digest = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
                listed.append(entry)
            self.reply(200, listed)

    def resolve(self, _, repo, revision, name):
        if self.refused(repo, revision):
            return
        content = self.server.files(repo, revision).get(name)
        if content is None:
            self.reply(404, {"error": "no entry"}, X_Error_Code="EntryNotFound", X_Error_Message="no")
            return
        commit = revision if len(revision) == 40 else self.server.commit(repo, revision)
        if name.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            self.server.large[digest] = content
            sizes = {"X_Linked_Size": len(content), "X_Linked_Etag": f'"{digest}"'}
            self.reply(
                302,
                Location=f"http://localhost:{self.server.server_port}/large/{digest}",
                X_Repo_Commit=commit,
                **sizes,
            )
        elif self.command == "HEAD":
            self.reply(
                200, Content_Length=len(content), ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit
            )
        else:
            self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)

    def stored(self, _, digest):
        content = self.server.large[digest]
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        part = content[start:]
        ranged = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        with self.server.lock:
            breaks = self.server.broken > 0 and self.command == "GET"
            self.server.broken -= breaks
        if not breaks:
            self.reply(206 if start else 200, part, ETag=f'"{digest}"', Accept_Ranges="bytes", **ranged)
            return
        self.send_response(206 if start else 200)
        for name, value in {"Content-Length": len(part), "ETag": f'"{digest}"', **ranged}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2])
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    # -- writing -------------------------------------------------------------------------------------------------------
    def create(self, content):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
            return
        wanted = json.loads(content)
        repo = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        self.server.repos.setdefault(repo, {})
        self.reply(200, {"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})

    def preupload(self, content, repo, _):
        files = json.loads(content)["files"]
        modes = [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular"} for one in files
        ]
        self.reply(200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in modes]})

    def batch(self, content, repo):
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.server.url}/put/{one['oid']}"}},
            }
            for one in json.loads(content)["objects"]
        ]
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, content, digest):
        assert hashlib.sha256(content).hexdigest() == digest
        self.server.large[digest] = content
        self.reply(200)

    def commits(self, content, repo, revision):
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.repos[repo][value["path"]] = self.server.large[value["oid"]]
        commit = self.server.commit(repo, "main")
        self.reply(
            200, {"success": True, "commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "commitOid": commit}
        )

    def fine(self, *_):
        self.reply(200, {"errors": [], "warnings": [], "name": "me", "type": "user", "orgs": []})


ROUTES = [
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml|/api/whoami-v2", _Handler.fine),
    (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", _Handler.tree),
    (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", _Handler.preupload),
    (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", _Handler.commits),
    (r"/api/models/([^/]+/[^/]+)(/revision/([^/]+))?", _Handler.info),
    (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/large/(\w+)", _Handler.stored),
    (r"/put/(\w+)", _Handler.put),
]
