from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from cycleqd_jax.tasks.download import local_file
from cycleqd_jax.tasks.records import read_rows
from cycleqd_jax.types import InputError

LINES = "\n".join(json.dumps({"task_id": i, "text": f"problem {i}"}) for i in range(5)).encode()
FILES = {
    "/problems.jsonl": LINES,
    "/problems.jsonl.gz": gzip.compress(LINES),
    "/cut.jsonl": LINES,
    "/datasets/someone/problems/resolve/" + "c" * 40 + "/data/problems.jsonl": LINES,
}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self):
        self.requests.append(f"{self.command} {self.path}")
        content = FILES.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{sha(content)}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:50] if "cut" in self.path else content)

    do_HEAD = do_GET

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The URL of a server and the list of its requests; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    requests: list[str] = []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"requests": requests}))
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}", requests
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize("name", ["problems.jsonl", "problems.jsonl.gz"])
def test_a_file_is_downloaded_once(server, name):
    url, requests = server
    address = f"{url}/{name}#sha256={sha(FILES[f'/{name}']).upper()}"
    first = local_file(address)
    assert local_file(address) == first
    assert requests == [f"GET /{name}"]
    assert [row.fields["text"] for row in read_rows(first)] == [f"problem {i}" for i in range(5)]


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("/problems.jsonl", f"write .*/problems.jsonl#sha256={sha(LINES)}"),
        ("/problems.jsonl#sha256=" + "0" * 64, f"digest {'0' * 64}, got {sha(LINES)}"),
        ("/cut.jsonl#sha256=" + sha(LINES), "expected .* bytes|IncompleteRead|got 50"),
        ("/absent.jsonl#sha256=" + sha(LINES), "404"),
        ("/a b.jsonl#sha256=" + sha(LINES), "control characters"),
        ("/problems.jsonl#sha256=../../../x", "64 hexadecimal digits"),
        ("/problems.jsonl#sha256=" + sha(LINES)[:32], "64 hexadecimal digits"),
    ],
)
def test_wrong_content_is_not_cached(server, tmp_path, address, named):
    url, _ = server
    for _ in range(2):
        with pytest.raises(InputError, match=named):
            local_file(url + address)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_cached_content_is_verified(server):
    url, requests = server
    address = f"{url}/problems.jsonl#sha256={sha(LINES)}"
    local_file(address).write_bytes(b"something else")
    assert local_file(address).read_bytes() == LINES
    assert len(requests) == 2


def test_a_cache_folder_that_is_not_writable(server, tmp_path):
    url, _ = server
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(InputError, match="the disk"):
        local_file(f"{url}/problems.jsonl#sha256={sha(LINES)}")


def test_an_unreachable_host(server):
    with pytest.raises(InputError, match=r"download it by hand"):
        local_file("http://127.0.0.1:9/problems.jsonl#sha256=" + sha(LINES))
    with pytest.raises(InputError, match=r"download it by hand"):
        local_file("https://[bad/x#sha256=" + sha(LINES))


@pytest.mark.exhaustive
def test_a_data_set_of_the_hub(server, tmp_path):
    url, requests = server
    address = f"hf://datasets/someone/problems@{'c' * 40}/data/problems.jsonl"
    code = f"from cycleqd_jax.tasks.download import local_file; print(local_file({address!r}).read_text())"
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == LINES.decode()
    assert sum(one.startswith("GET") for one in requests) == 1


@pytest.mark.parametrize(
    "address",
    [
        "hf://datasets/problems.jsonl",
        "hf://datasets/someone/problems/data.jsonl",
        "hf://datasets/someone/problems@main/data.jsonl",
    ],
)
def test_a_data_set_without_a_commit(address):
    with pytest.raises(InputError, match="at a commit"):
        local_file(address)


def test_a_path_is_a_path(tmp_path):
    assert local_file(tmp_path / "a.jsonl") == tmp_path / "a.jsonl"
    assert local_file("a.jsonl.gz").name == "a.jsonl.gz"
    (tmp_path / "a.jsonl.gz").write_bytes(LINES)
    with pytest.raises(InputError, match="expected a readable"):
        read_rows(tmp_path / "a.jsonl.gz")
