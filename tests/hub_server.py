"""A Hugging Face hub on loopback: it takes repositories, files and commits, and keeps them.

It understands what `HfApi.create_repo` and `upload_folder` say: small files come inside the commit,
large ones by git's LFS. Without the right token it refuses, as the hub does.
"""

import base64
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_a_test"
_LFS_BYTES = 4096  # files from this size on go by LFS


@dataclass
class Hub:
    """What a hub holds.

    Attributes:
        endpoint: Its address, for HF_ENDPOINT.
        repositories: Name -> what it was created with.
        files: Name of a repository -> path -> content, as of the last commit.
    """

    endpoint: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    files: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    objects: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """Variables that send huggingface_hub here."""
        said = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1"}
        return said | ({"HF_TOKEN": token} if token else {})

    # ---- the answers, of which each takes a path's parts and a body

    def create(self, body: bytes) -> dict[str, Any]:
        told = json.loads(body)
        name = f"{told['organization']}/{told['name']}"
        self.repositories.setdefault(name, told)
        return {"url": f"{self.endpoint}/{name}", "name": name}

    def preupload(self, body: bytes) -> dict[str, Any]:
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= _LFS_BYTES else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return {"files": answers}

    def batch(self, body: bytes) -> dict[str, Any]:
        wanted = json.loads(body)["objects"]
        actions = [
            o | {"actions": {"upload": {"href": f"{self.endpoint}/objects/{o['oid']}"}}}
            for o in wanted
        ]
        return {"transfer": "basic", "objects": actions}

    def commit(self, name: str, body: bytes) -> dict[str, Any]:
        files = self.files.setdefault(name, {})
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        url = f"{self.endpoint}/{name}/commit/1"
        return {"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""}

    def answer(self, path: str, body: bytes) -> dict[str, Any] | None:
        """Answer a POST; None where there is no such thing."""
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4])
        if path == "/api/repos/create":
            return self.create(body)
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(body)
        if name not in self.repositories:
            return None
        if parts[4:5] == ["preupload"]:
            return self.preupload(body)
        return self.commit(name, body) if parts[4:5] == ["commit"] else None


@contextmanager
def hub_server() -> Generator[Hub]:
    """Run a hub until the block is left."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.reply(401, {"error": "Invalid username or password."})
            answer = hub.answer(self.path.partition("?")[0], body)
            return self.reply(404 if answer is None else 200, answer or {"error": "not found"})

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            oid = self.path.rpartition("/")[2]
            assert sha256(body).hexdigest() == oid
            hub.objects[oid] = body
            self.reply(200, {})

        def reply(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its own name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
