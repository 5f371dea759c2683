"""The Hugging Face hub: its cache without a network, and an upload to a hub of our own."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from classifiers_exchanged import make_classifier, write_fine_tuned
from models_exchanged import SIZES, model_tree, random_clip

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError
from tats_fast.interchange.hub import is_hub_name

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def run(tmp_path):
    return write_fine_tuned(tmp_path / "run", make_classifier(model_tree("plain")))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_name_is_found_in_the_cache(run, cache, tmp_path):
    exported = tmp_path / "exported"
    assert (
        main(["export", "--checkpoint", str(run), "--to", "huggingface", "--out", str(exported)])
        == 0
    )
    place, commit = cache / "models--org--name", "a" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    shutil.copytree(exported, place / "snapshots" / commit)
    _, video = random_clip(SIZES["plain"])
    expected = tats_fast.load_encoder(run).forward_features(video)
    assert torch.equal(tats_fast.load_encoder("org/name").forward_features(video), expected)


def test_what_is_not_there_is_one_sentence(cache, monkeypatch):
    words = r"load_encoder=org/other: nothing there, and not to be had from the Hugging Face hub"
    with pytest.raises(ConfigError, match=words) as caught:
        tats_fast.load_encoder("org/other")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"needs huggingface_hub: pip install 'tats-fast\[hub\]'"):
        tats_fast.load_encoder("org/other")


def test_a_path_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_name("org/name") and is_hub_name("org/name-2.1_b")
    for path in ("runs/typo", "name", "a/b/c", "./a", "../a", "/a/b", "a/", "a b/c"):
        assert not is_hub_name(path), path


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload asks for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"id": "org/name", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuses:
            return self.answer({"error": "You have no right to do that"}, 403)
        if self.path.endswith("/preupload/main"):
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"], **mode} for file in json.loads(body)["files"]]
            return self.answer({"files": files})
        where = f"http://127.0.0.1:{self.server.server_port}/org/name"
        self.answer(
            {"url": where, "commitUrl": f"{where}/commit/{'1' * 40}", "commitOid": "1" * 40}
        )

    def answer(self, tree, status=200):
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words): ...


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.refuses = [], False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(hub.hf_api.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def push(run, out, repo="org/name"):
    arguments = ["export", "--checkpoint", str(run), "--to", "huggingface", "--out", str(out)]
    return main([*arguments, "--push-to-hub", repo])


def test_an_upload_has_the_files_that_were_written(run, server, tmp_path, capsys):
    assert push(run, tmp_path / "out") == 0
    assert f"{hub.constants.ENDPOINT}/org/name" in capsys.readouterr().out
    paths = [path for path, _, _ in server.seen]
    created = json.loads(
        next(body for path, _, body in server.seen if path.endswith("repos/create"))
    )
    assert created["name"] == "name" and created["organization"] == "org"
    # Which of the two depends on the library's release.
    assert created.get("visibility") == "private" or created.get("private") is True
    assert {auth for path, auth, _ in server.seen if "/models/" in path} == {"Bearer hf_test"}
    (commit,) = (body for path, _, body in server.seen if "/commit/main" in path)
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {x["value"]["path"]: x["value"]["content"] for x in lines if x["key"] == "file"}
    assert set(files) == {path.name for path in (tmp_path / "out").iterdir()}, paths
    for name, content in files.items():
        assert base64.b64decode(content) == (tmp_path / "out" / name).read_bytes()


def test_a_hub_that_refuses_leaves_the_files(run, server, tmp_path, capsys):
    server.refuses = True
    assert push(run, tmp_path / "out") == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error:"))
    assert "org/name: not uploaded" in line and str(tmp_path / "out") in line
    assert (tmp_path / "out/model.safetensors").is_file()


def test_what_is_missing_is_said_before_the_work(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert push(run, tmp_path / "out") == 2
    assert "no token; run hf auth login, or set HF_TOKEN" in capsys.readouterr().err
    assert push(run, tmp_path / "out", "name") == 2
    assert "--push-to-hub=name: must be owner/name" in capsys.readouterr().err
    arguments = ["export", "--checkpoint", str(run), "--to", "onnx", "--push-to-hub", "org/name"]
    assert main([*arguments, "--out", str(tmp_path / "out.onnx")]) == 2
    assert "--push-to-hub=org/name: needs --to=huggingface" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert push(run, tmp_path / "out") == 2
    assert "needs huggingface_hub: pip install 'tats-fast[hub]'" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
