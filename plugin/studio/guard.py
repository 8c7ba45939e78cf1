"""Guard of the studio: nobody but the person who was given its address reaches any of its pages.

A request needs the token, first in the address and from then on in a cookie, or, of a script, in
the header `Authorization: Bearer TOKEN`. A browser that was led here by another page gives itself
away by its Origin or, where a browser sends none, by Sec-Fetch-Site (a server on another port is
sent our cookie and is of the same site), and by its Host where a foreign name points to this
machine.
"""

from __future__ import annotations

import html
import secrets
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# No script, frame or connection of another place; NiceGUI's own scripts are inline.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self'; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",  # the first address holds the token
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI application that lets through what has the token and comes from its own pages."""

    def __init__(self, app: ASGIApp, token: str, port: int):
        self.app, self._token = app, token
        self._cookie = f"studio-{port}"  # cookies are of a host, whatever its port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not _same_origin(headers):
            await _refuse(scope, receive, send, 403, "This page was asked for by another one.")
        elif scope["type"] == "http" and (query := self._without_token(scope)) is not None:
            address = "/" + quote(scope["path"].lstrip("/")) + (f"?{query}" if query else "")
            response = _to(address, headers)
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            await response(scope, receive, send)
        elif self._is_known(headers):
            await self.app(scope, receive, _with_headers(send))
        else:
            why = "Open the address that `main.py studio` printed, with its token."
            await _refuse(scope, receive, send, 401, why)

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        # Another program of this host may have set a cookie that http.cookies gives up at.
        return self._is_token(cookie_parser(headers.get("cookie", "")).get(self._cookie, ""))

    def _without_token(self, scope: Scope) -> str | None:
        """Return the query of a request without its token; None where it has not the right one."""
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if not any(name == "token" and self._is_token(value) for name, value in pairs):
            return None
        return urlencode([(name, value) for name, value in pairs if name != "token"])

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


def _same_origin(headers: Headers) -> bool:
    """Tell whether a request is of a page of ours, of no page, or of a link that a person follows."""
    origin = headers.get("origin")
    if origin is not None:
        return origin == f"http://{headers.get('host', '')}"
    followed = headers.get("sec-fetch-dest") == "document"
    return followed or headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _to(address: str, headers: Headers) -> Response:
    """Lead to an address without the token.

    Where a page of another site has the link, such as a terminal in a browser, a redirection is of
    that site too and would lack the cookie; a page that leads on is not.
    """
    if headers.get("sec-fetch-site") != "cross-site":
        return RedirectResponse(address, 303, HEADERS)
    text = f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(address)}">'
    return HTMLResponse(text, 200, HEADERS)


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            known = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *(
                    (name.lower().encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.lower().encode() not in known
                ),
            ]
        await send(message)

    return wrapped


async def _refuse(scope: Scope, receive: Receive, send: Send, code: int, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4000 + code, "reason": why})
        return
    await PlainTextResponse(f"{why}\n", code, HEADERS)(scope, receive, send)
