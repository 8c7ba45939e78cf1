"""The studio as a program: its address, its lock, its end, and its JSON API."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from helpers.run_folders import write_run
from helpers.support import is_running, patience, run_main, start_main, wait_until

pytestmark = pytest.mark.end_to_end


@dataclass(frozen=True)
class Studio:
    """A running studio."""

    program: subprocess.Popen[str]
    root: Path
    url: str

    @property
    def token(self) -> str:
        return self.url.partition("?token=")[2]

    def ask(
        self, path: str, method: str = "GET", body: object = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, str]:
        place = urlsplit(self.url)
        wait_s = patience(60)
        name = "127.0.0.1" if "Host" in headers else place.hostname or ""
        connection = http.client.HTTPConnection(name, place.port, timeout=wait_s)
        sent = {"Authorization": f"Bearer {self.token}", **headers}
        text = None if body is None else json.dumps(body)
        if text is not None:
            sent = {"Content-Type": "application/json", **sent}
        connection.request(method, path, text, sent)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read().decode()
        connection.close()
        return found

    def json(self, path: str, method: str = "GET", body: object = None) -> tuple[int, Any]:
        status, _, text = self.ask(path, method, body)
        return status, json.loads(text)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Return (exit code, stderr) after a signal."""
        self.program.send_signal(number)
        _, err = self.program.communicate(timeout=patience(30))
        return self.program.returncode, err


def open_studio(root: Path, *words: str) -> Studio:
    program = start_main("studio", "--run_root", root, "--no_open", "--json", *words)
    assert program.stdout
    return Studio(program, root, json.loads(program.stdout.readline())["url"])


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    root = tmp_path_factory.mktemp("studio") / "runs"
    write_run(root / "a<b>b")
    write_run(root / "stages" / "1-x", unfinished=True)
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    opened = open_studio(root)
    yield opened
    code, err = opened.end()
    assert (code, err) == (0, "")


def test_page_has_no_markup_of_a_name_and_no_server_line(studio: Studio) -> None:
    status, headers, text = studio.ask("/")
    assert status == 200
    assert "server" not in headers
    assert "frame-ancestors" in headers["content-security-policy"]
    assert "a<b>b" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")  # nothing of another place
    assert "https://" not in text


def test_first_address_leads_on_without_its_token(studio: Studio) -> None:
    status, headers, _ = studio.ask(f"/?token={studio.token}", Authorization="")
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"].split(";")[0]
    assert studio.ask("/", Authorization="", Cookie=cookie)[0] == 200
    assert studio.ask("/", Authorization="")[0] == 401
    assert studio.ask("/", Host="evil.example")[0] == 400
    assert studio.ask("/api/jobs", "POST", {}, Origin="http://evil.example")[0] == 403


@pytest.mark.parametrize("path", ["/run/nothing", "/run/..%2F..%2Fetc", "/compare?runs=x&runs=y"])
def test_page_of_no_run_says_so(studio: Studio, path: str) -> None:
    status, _, text = studio.ask(path)
    assert status == 200
    assert "There is no run" in text
    assert "Traceback" not in text


def test_unknown_address_is_a_page_without_a_traceback(studio: Studio) -> None:
    status, _, text = studio.ask("/nothing")
    assert status == 404
    assert "Traceback" not in text
    assert studio.json("/api/nothing")[1]["problems"][0]["field"] == "address"
    assert studio.ask("/openapi.json")[0] == 404
    assert studio.ask("/docs")[0] == 404


def test_api_lists_runs_and_shows_one(studio: Studio) -> None:
    status, found = studio.json("/api/runs")
    assert status == 200
    states = {run["name"]: run["status"] for run in found["runs"]}
    assert states == {"a<b>b": "done", "stages/1-x": "unfinished", "broken": "broken"}
    status, run = studio.json("/api/runs/stages/1-x")
    assert (status, run["name"], run["progress"], run["checkpoints"]) == (
        200,
        "stages/1-x",
        None,
        [],
    )
    assert run["run"]["params"]["model_name"] == "m"


def test_api_refuses_in_problems(studio: Studio) -> None:
    status, found = studio.json("/api/runs/none")
    assert (status, found["problems"][0]["got"]) == (404, "none")
    status, found = studio.json("/api/runs/broken")
    assert (status, found["problems"][0]["expected"]) == (404, "a readable run.json")
    status, found = studio.json("/api/check", "POST", {"values": 3})
    assert (status, found["problems"][0]["field"]) == (422, "values")
    assert studio.json("/api/jobs/x/move", "POST", {"place": "no"})[0] == 422


def test_api_checks_as_check_does(studio: Studio) -> None:
    status, found = studio.json("/api/check", "POST", {"values": {"learning_rate": "x", "nam": 1}})
    assert (status, found["ok"], found["plan"]) == (200, False, None)
    fields = [problem["field"] for problem in found["problems"]]
    assert {"learning_rate", "nam"} <= set(fields)


def test_second_studio_shows_the_address_of_the_first(studio: Studio) -> None:
    words = ("studio", "--run_root", studio.root, "--no_open")
    done = run_main(*words, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"url": studio.url, "running": True})
    assert run_main(*words).stdout == f"studio: {studio.url} (it runs already)\n"
    own = studio.root / ".studio"
    assert oct(own.stat().st_mode)[-3:] == "700"
    assert oct((own / "address").stat().st_mode)[-3:] == "600"


def test_ctrl_c_ends_it_with_a_page_open(tmp_path: Path) -> None:
    opened = open_studio(tmp_path)
    place = urlsplit(opened.url)
    with socket.create_connection((place.hostname or "", place.port or 0)) as page:
        lines = (
            "GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1",
            f"Host: {place.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            f"Authorization: Bearer {opened.token}",
        )
        page.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert page.recv(100).startswith(b"HTTP/1.1 101")
        assert opened.end(signal.SIGINT) == (0, "")
    assert not (tmp_path / ".studio" / "address").exists()


def test_killed_studio_leaves_a_root_that_opens_again(tmp_path: Path) -> None:
    opened = open_studio(tmp_path)
    opened.ask("/")
    assert opened.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert (tmp_path / ".studio" / "address").read_text() == opened.url
    again = open_studio(tmp_path)
    assert again.token != opened.token
    assert again.ask("/", Authorization=f"Bearer {opened.token}")[0] == 401
    assert again.end()[0] == 0


def test_ipv6_and_a_wider_host_are_served(tmp_path: Path) -> None:
    opened = open_studio(tmp_path / "a", "--host", "::1")
    assert opened.url.startswith("http://[::1]:")
    assert opened.ask("/")[0] == 200
    assert opened.end() == (0, "")
    opened = open_studio(tmp_path / "b", "--host", "0.0.0.0")
    assert opened.ask("/", Host=urlsplit(opened.url).netloc)[0] == 200
    code, err = opened.end()
    assert code == 0
    assert err.startswith("studio: warning: ")


def test_root_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link" / ".studio").symlink_to(tmp_path / "other")
    for name in ("file", "link"):
        done = run_main("studio", "--run_root", tmp_path / name, "--no_open")
        assert done.returncode == 2
        assert done.stderr.startswith("error[2]: run_root: ")
    assert os.listdir(tmp_path / "other") == []


def test_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_main("studio", "--run_root", tmp_path, "--no_open", "--port", port)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error[2]: port: expected an address that can be had, got {port}"[:55]
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_check_ends_with_the_studio(tmp_path: Path, number: int) -> None:
    """The torch program that the check has started, too."""
    studio = open_studio(tmp_path / "runs")
    own = psutil.Process(studio.program.pid)
    values = {"model_name": str(tmp_path / "m"), "dataset_name": str(tmp_path / "d.jsonl")}

    def ask() -> None:
        with suppress(OSError, http.client.HTTPException):
            studio.ask("/api/check", "POST", {"values": values})

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        wait_until(
            lambda: len(own.children(recursive=True)) == 2,
            "the programs of the check",
            deadline_s=20,
        )
        started = [one.pid for one in own.children(recursive=True)]
    finally:
        studio.end(number)
    asking.join()
    wait_until(lambda: not any(map(is_running, started)), "the end of both")


def test_a_name_too_long_for_a_disk_is_no_run(studio: Studio) -> None:
    name = "a" * 300
    for path in ("/run/", "/compare?runs=", "/chat?model=", "/new?from=", "/player?run="):
        assert studio.ask(f"{path}{name}")[0] == 200
    assert studio.ask(f"/play/{name}")[0] == 404
    assert studio.json(f"/api/runs/{name}")[0] == 404
