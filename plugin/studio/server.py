"""Server of the studio: its address, its lock on a root folder, and its pages under a guard."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
import webbrowser
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from ..base.errors import JobError, Problem, json_line
from ..base.files import open_plain, take_lock, write_whole
from .place import Place

ADDRESS_WAIT_S = 5.0  # for a studio that has just taken the root
WILDCARDS = ("0.0.0.0", "::")


def serve(root: Path, *, host: str, port: int, opens: bool, as_json: bool) -> int:
    """Serve the pages of a root folder until a signal ends the program. Returns the exit code.

    The address is printed before the libraries of the pages are imported: a browser that opens it
    at once waits for them. Where a studio has the root already, its address is printed instead.
    Raises JobError (exit 2) for a root that cannot be written, or an address that is taken.
    """
    place, address = Place(root), Place(root).own / "address"
    if not _locked(place.own):
        return _show(_running(address), opens=opens, as_json=as_json, running=True)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    listener = _listener(host, port)
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24)
    known = socket.gethostname() if host in WILDCARDS else host
    url = f"http://{f'[{known}]' if ':' in known else known}:{port}/?token={token}"
    try:
        _write_private(address, url)
        if not listener.getsockname()[0].startswith(("127.", "::1")):
            print(
                "studio: warning: whoever reads this network's packets reads the token, and with "
                "it runs commands as you",
                file=sys.stderr,
            )
        _show(url, opens=opens, as_json=as_json, running=False)
        from .application import serve_pages

        serve_pages(place, listener, token, {host, known})
    finally:
        address.unlink(missing_ok=True)
    return 0


def _end(number: int, frame: object) -> NoReturn:
    """End on SIGTERM and on Ctrl-C. The server, which ends its pages first, raises them again."""
    raise SystemExit(0)


def _locked(own: Path) -> bool:
    """Lock a root until this process ends, however it ends; False where another studio has it."""
    try:
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
        if own.is_symlink():
            raise NotADirectoryError(0, "a link, which is not followed")
        return take_lock(own / "lock") is not None
    except OSError as error:
        got = f"{own}: {error.strerror}"
        raise JobError(Problem("run_root", "a folder that can be written", got)) from error


def _show(url: str, *, opens: bool, as_json: bool, running: bool) -> int:
    """Print the address of a studio, and open it in a browser if asked."""
    if as_json:
        print(json_line({"url": url, **({"running": True} if running else {})}), flush=True)
    else:
        print(f"studio: {url}{' (it runs already)' if running else ''}", flush=True)
    if opens and not webbrowser.open(url):
        print("studio: no browser could be opened here; open the address", file=sys.stderr)
    return 0


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        got = f"{host}:{port}: {error.strerror}"
        fix = "Leave --port out for a free one."
        raise JobError(Problem("port", "an address that can be had", got, fix)) from error
    listener.listen(128)
    return listener


def _write_private(path: Path, text: str) -> None:
    """Write a file that nobody else may read: it holds the token, and lies in a private folder."""
    before = os.umask(0o077)
    try:
        write_whole(path, text, durable=False)
    finally:
        os.umask(before)


def _running(path: Path) -> str:
    """Return the address of the studio that holds the root. Raises JobError.

    It may be about to write it. What a killed one left leads nowhere.
    """
    deadline = time.monotonic() + ADDRESS_WAIT_S
    got = f"{path}, which leads nowhere"
    while time.monotonic() < deadline:
        try:
            with open(path, encoding="utf-8", opener=open_plain) as file:
                url = file.read(1000)
            place = urlsplit(url)
            socket.create_connection((place.hostname or "", place.port or 80), 1).close()
            return url
        except (OSError, ValueError) as error:
            got = f"{path}: {error}"
        time.sleep(0.05)
    raise JobError(Problem("run_root", "the address of the studio that holds it", got))
