"""Guard of the studio: who gets in, and what anybody else learns."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.middleware.trustedhost import TrustedHostMiddleware

from plugin.studio.guard import Guard

TOKEN, PORT = "the-right-token", 4321
HERE = f"127.0.0.1:{PORT}"
COOKIE = f"studio-{PORT}={TOKEN}"


async def _inside(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(
    path: str = "/",
    query: str = "",
    *,
    kind: str = "http",
    host: str = HERE,
    **headers: str,
) -> tuple[int, Mapping[str, str], str]:
    """Return (status, headers, body) of a request; of a socket 101, or the code it is closed with."""
    sent: list[Any] = []
    lines = {"host": host, **headers}

    async def receive() -> Any:
        return {"type": f"{kind}.connect" if kind == "websocket" else "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
    }
    app = TrustedHostMiddleware(
        Guard(_inside, TOKEN, PORT), allowed_hosts=["127.0.0.1", "[::1]"], www_redirect=False
    )
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    first = sent[0]
    if kind == "websocket" and first["type"] != "websocket.http.response.start":
        return 101 if first["type"] == "websocket.accept" else first["code"], {}, ""
    found = {name.decode(): value.decode() for name, value in first["headers"]}
    body = b"".join(one.get("body", b"") for one in sent[1:])
    return first["status"], found, body.decode()


def test_right_token_becomes_a_cookie_and_leaves_the_address() -> None:
    status, headers, _ = ask("/run/a b", f"runs=1&token={TOKEN}&runs=2")
    assert (status, headers["location"]) == (303, "/run/a%20b?runs=1&runs=2")
    assert headers["set-cookie"].startswith(f"{COOKIE};")
    assert {"HttpOnly", "SameSite=strict"} <= set(headers["set-cookie"].split("; "))


def test_token_leaves_the_address_of_somebody_known() -> None:
    status, headers, _ = ask("/", f"token={TOKEN}", cookie=COOKIE)
    assert (status, headers["location"]) == (303, "/")


def test_redirect_never_leads_to_another_host() -> None:
    assert ask("//evil.example/x", f"token={TOKEN}")[1]["location"] == "/evil.example/x"


@pytest.mark.parametrize(
    "given",
    [
        {"cookie": COOKIE},
        {"cookie": f"other=1; {COOKIE}", "origin": f"http://{HERE}"},
        {"authorization": f"Bearer {TOKEN}"},
        {"cookie": f'foreign={{"x": 1}}; a b; {COOKIE}'},
        {"cookie": COOKIE, "sec-fetch-site": "same-origin", "sec-fetch-dest": "script"},
        {"cookie": COOKIE, "sec-fetch-site": "same-site", "sec-fetch-dest": "document"},
    ],
)
def test_cookie_and_bearer_open_pages_and_sockets(given: dict[str, str]) -> None:
    status, headers, body = ask(**given)
    assert (status, body) == (200, "inside")
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'self'" in headers["content-security-policy"]
    assert ask(kind="websocket", **given)[0] == 101


@pytest.mark.parametrize(
    ("query", "given"),
    [
        ("", {}),
        ("token=wrong", {}),
        ("token=", {}),
        ("", {"cookie": f"studio-{PORT + 1}={TOKEN}"}),
        ("", {"cookie": f"studio-{PORT}=wrong"}),
        ("", {"cookie": "\u00ff;;=,"}),
        ("", {"authorization": "Bearer wrong"}),
        ("", {"authorization": f"Basic {TOKEN}"}),
    ],
)
def test_anything_else_is_refused_in_one_line(query: str, given: dict[str, str]) -> None:
    status, headers, body = ask("/api/runs", query, **given)
    assert status == 401
    assert body == "Open the address that `main.py studio` printed, with its token.\n"
    assert "set-cookie" not in headers
    assert "server" not in headers
    assert ask(kind="websocket", query=query, **given)[0] == 4401


@pytest.mark.parametrize("origin", ["http://evil.example", "null", f"http://127.0.0.1:{PORT + 1}"])
def test_foreign_origin_is_refused_with_the_cookie(origin: str) -> None:
    assert ask(cookie=COOKIE, origin=origin)[0] == 403
    assert ask(kind="websocket", cookie=COOKIE, origin=origin)[0] == 4403
    assert ask(query=f"token={TOKEN}", origin=origin)[0] == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("kind", ["script", "iframe", "image", "empty"])
def test_foreign_page_gets_nothing_by_its_elements(site: str, kind: str) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-dest": kind}
    assert ask("/_nicegui_ws/socket.io/", "j=0", cookie=COOKIE, **headers)[0] == 403


def test_link_of_another_site_leads_on_by_a_page_of_ours() -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}
    status, found, body = ask('/run/a"b', f"x=<&token={TOKEN}", **headers)
    assert (status, found["set-cookie"].split(";")[0]) == (200, COOKIE)
    assert body.endswith('content="0;url=/run/a%22b?x=%3C">')


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1.evil.example"])
def test_foreign_host_is_refused_with_the_token(host: str) -> None:
    status, _, body = ask(query=f"token={TOKEN}", host=host, origin=f"http://{host}")
    assert (status, body) == (400, "Invalid host header")


def test_host_of_ipv6_is_known() -> None:
    host = f"[::1]:{PORT}"
    assert ask(host=host, origin=f"http://{host}", cookie=COOKIE)[0] == 200
