"""Application of the studio: FastAPI with NiceGUI's pages and the JSON API, under one guard."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterable

import uvicorn

# engineio imports its clients with the server; what they need takes longer than all of our modules.
_UNUSED = [name for name in ("aiohttp", "requests", "websocket") if name not in sys.modules]
sys.modules.update(dict.fromkeys(_UNUSED))  # type: ignore[arg-type]  # None: not to be imported
from nicegui import app as pages_app  # noqa: E402
from nicegui import ui  # noqa: E402

for _name in _UNUSED:
    del sys.modules[_name]

from fastapi import FastAPI  # noqa: E402
from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: E402

from . import api, chat_page, home, later, player_page  # noqa: E402
from .frame import add_style, say_one_line  # noqa: E402
from .guard import Guard  # noqa: E402
from .place import Place  # noqa: E402
from .watch import compare_page, run_page  # noqa: E402
from .watch.programs import end_programs  # noqa: E402

# Each registers the pages of its module.
PAGES = (
    home.pages,
    later.pages,
    run_page.pages,
    compare_page.pages,
    chat_page.pages,
    player_page.pages,
)
GRACE_S = 1  # that open pages get when the program ends


def serve_pages(place: Place, listener: socket.socket, token: str, hosts: Iterable[str]) -> None:
    """Serve the pages on a bound socket until a signal comes. `hosts`: names of this machine."""
    app = FastAPI(openapi_url=None)
    api.add_routes(app, place)
    for register in PAGES:
        register(place)
    add_style()
    logging.getLogger("nicegui").setLevel(logging.ERROR)  # it logs every address that is not known
    pages_app.on_page_exception(say_one_line)
    pages_app.on_shutdown(end_programs)
    # On the loopback compression costs more time than it saves. Tailwind's compiler in the browser
    # would be most of the first page's time; the style sheet has the few classes that are needed.
    ui.run_with(
        app,
        title="studio",
        dark=None,
        tailwind=False,
        gzip_middleware_factory=None,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )
    named = {f"[{name}]" if ":" in name else name for name in hosts}
    names = [*(named | {"127.0.0.1", "localhost", "[::1]"})]
    guard = Guard(app, token, listener.getsockname()[1])
    config = uvicorn.Config(
        TrustedHostMiddleware(guard, allowed_hosts=names, www_redirect=False),
        log_level=logging.ERROR,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    uvicorn.Server(config).run(sockets=[listener])
