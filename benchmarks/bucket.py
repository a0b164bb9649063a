"""A bucket of Google Cloud Storage on the loopback interface: a folder, read as ``gs://bucket``.

    with bucket.serve(folder) as store:
        subprocess.run(command, env=os.environ | store.environment)

TensorFlow has the addresses of the service built in, so it is led here as by the proxy of a
company, which ``https_proxy`` names, and trusts a certificate made for the occasion. What it asks
is the JSON API and byte ranges (https://cloud.google.com/storage/docs/json_api): that much is here.
Needs the command ``openssl``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import multiprocessing
import pathlib
import re
import ssl
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from multiprocessing import connection
from typing import Any

NAME = "bucket"
_HOSTS = ("www.googleapis.com", "storage.googleapis.com")


@dataclasses.dataclass(frozen=True)
class Store:
    """A bucket that is being served.

    Attributes:
        environment: variables with which TensorFlow finds it.
        delay_s: seconds every request is held up; may be set at any time.
        fail_every: every so many requests, one is refused for the moment (503); 0: none is.
        requests: that came so far, without those that write.
        bytes: of objects that were sent so far.
    """

    environment: Mapping[str, str]
    delay_s: Any  # these are `multiprocessing.Value`
    fail_every: Any
    requests: Any
    bytes: Any


@contextlib.contextmanager
def serve(folder: pathlib.Path) -> Iterator[Store]:
    """Serves a folder as ``gs://bucket`` from a process of its own until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    values = [spawn.Value(kind) for kind in ("d", "q", "q", "q")]
    with tempfile.TemporaryDirectory() as keys:
        certificate = _make_certificate(pathlib.Path(keys))
        ours, its = spawn.Pipe()
        process = spawn.Process(
            target=_serve, args=(folder, certificate, its, *values), daemon=True
        )
        process.start()
        try:
            environment = {
                "https_proxy": f"http://127.0.0.1:{ours.recv()}",
                "CURL_CA_BUNDLE": str(certificate),
                "NO_GCE_CHECK": "true",  # no machine of Google's is asked for credentials
            }
            yield Store(environment, *values)
        finally:
            process.terminate()
            process.join()


def _make_certificate(folder: pathlib.Path) -> pathlib.Path:
    """Makes a key and a certificate in one file."""
    path = folder / "certificate.pem"
    names = ",".join(f"DNS:{host}" for host in _HOSTS)
    key = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(path)]
    command = ["openssl", *key, "-addext", f"subjectAltName={names}", *files]
    subprocess.run(command, check=True, capture_output=True)
    with open(path, "a") as file:
        file.write((folder / "key.pem").read_text())
    return path


def _serve(
    folder: pathlib.Path, certificate: pathlib.Path, ready: connection.Connection, *values: Any
) -> None:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.folder = folder
    server.delay_s, server.fail_every, server.requests, server.bytes = values
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(certificate)
    ready.send(server.server_address[1])
    server.serve_forever()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *of: Any) -> None:
        """Says nothing of clients that go away."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *of: Any) -> None:
        pass

    def do_CONNECT(self) -> None:
        """Becomes the service itself, where a proxy would connect to it."""
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self) -> None:
        """Answers for an object's bytes, an object's facts, a listing, or the bucket."""
        time.sleep(self.server.delay_s.value)
        url = urllib.parse.urlsplit(self.path)
        if self._fails():
            self._answer(503)
        elif url.path.startswith(f"/{NAME}/"):
            self._send_bytes(self._file(url.path.removeprefix(f"/{NAME}/")))
        elif found := re.fullmatch(rf"/storage/v1/b/{NAME}/o/(.+)", url.path):
            path = self._file(found[1])
            self._json(self._facts(path)) if path.is_file() else self._answer(404)
        elif url.path == f"/storage/v1/b/{NAME}/o":
            self._json(self._listing(dict(urllib.parse.parse_qsl(url.query))))
        else:
            self._json({"name": NAME}) if url.path == f"/storage/v1/b/{NAME}" else self._answer(404)

    def do_POST(self) -> None:
        """Begins an upload."""
        self._body()
        query = urllib.parse.urlsplit(self.path).query
        self._answer(200, Location=f"https://{_HOSTS[0]}/upload?{query}")

    def do_PUT(self) -> None:
        """Takes an object, whole."""
        data = self._body()
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        path = self._file(query["name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._json(self._facts(path))

    def _body(self) -> bytes:
        """Returns what came with a request; TensorFlow sends objects in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while length := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _fails(self) -> bool:
        every = self.server.fail_every.value
        with self.server.requests.get_lock():
            self.server.requests.value += 1
            return every > 0 and self.server.requests.value % every == 0

    def _file(self, name: str) -> pathlib.Path:
        return self.server.folder / urllib.parse.unquote(name)

    def _facts(self, path: pathlib.Path) -> dict[str, str]:
        name, updated = str(path.relative_to(self.server.folder)), "2026-01-01T00:00:00.000Z"
        return {
            "name": name, "size": str(path.stat().st_size), "generation": "1", "updated": updated,
        }  # fmt: skip

    def _listing(self, query: Mapping[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], set()
        for path in sorted(self.server.folder.rglob("*")):
            name = str(path.relative_to(self.server.folder))
            if not path.is_file() or not name.startswith(prefix):
                continue
            first, deeper, _ = name.removeprefix(prefix).partition(delimiter or "\0")
            if deeper:
                folders.add(prefix + first + delimiter)
            else:
                items.append(self._facts(path))
        return {"items": items, "prefixes": sorted(folders)}

    def _send_bytes(self, path: pathlib.Path) -> None:
        if not path.is_file():
            return self._answer(404)
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", f"bytes=0-{size}"))
        first, last = int(wanted[1]), min(int(wanted[2]), size - 1)
        if first >= size:
            return self._answer(416)
        with open(path, "rb") as file:
            file.seek(first)
            data = file.read(last - first + 1)
        with self.server.bytes.get_lock():
            self.server.bytes.value += len(data)
        return self._answer(206, data, Content_Range=f"bytes {first}-{last}/{size}")

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
