"""JSON API: what the pages show and do, for scripts. Its values are those of the run folder's files.

Errors are `{"problems": [...]}`, as `check --json` prints them, with status 404 or 422.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from ..base.errors import JobError, Problem, first_line, internal_problem
from ..comparison.summary import small_json, summaries_of
from ..run.events import ProgressFile
from ..run.folder import RunFolder, to_json
from .place import Place
from .watch.programs import checked

_Value = TypeVar("_Value")


class Values(BaseModel):
    """Parameters of a job, as a --config file has them."""

    values: dict[str, Any]
    name: str = ""


class NewPlace(BaseModel):
    """Place of a waiting job in its queue: 1 is next."""

    place: int


def add_routes(app: FastAPI, place: Place) -> None:
    """Register the API and its errors."""
    router = APIRouter(prefix="/api")
    known = summaries_of(place.root)

    @router.get("/runs")
    def _() -> Response:
        return _answer({"runs": [run.model_dump() for run in known.read()]})

    @router.get("/runs/{name:path}")
    def _(name: str) -> Response:
        return _answer(_run(place, name))

    @router.post("/check")
    async def _(job: Values) -> Response:
        return _answer(await checked(job.values))

    _add_jobs(router, place)

    @router.api_route("/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    def _(rest: str) -> Response:
        return _problems([Problem("address", "one of the API", f"/api/{rest}")], 404)

    app.include_router(router)
    app.add_exception_handler(JobError, _say_problems)
    app.add_exception_handler(RequestValidationError, _say_invalid)


def _add_jobs(router: APIRouter, place: Place) -> None:
    async def with_queue(use: Callable[[Any], _Value]) -> _Value:
        def work() -> _Value:
            from ..queue.folder import Queue  # with the parameters' modules: not at the first page

            return use(Queue(place.root))

        return await asyncio.to_thread(work)

    @router.get("/jobs")
    async def _() -> Response:
        jobs = await with_queue(lambda queue: queue.jobs())
        return _answer({"jobs": [job.model_dump() for job in jobs]})

    @router.post("/jobs")
    async def _(job: Values) -> Response:
        added = await with_queue(lambda queue: queue.add(job.values, name=job.name))
        return _answer(added.model_dump(), 201)

    @router.delete("/jobs/{name}")
    async def _(name: str) -> Response:
        return _answer((await with_queue(lambda queue: queue.cancel(name))).model_dump())

    @router.post("/jobs/{name}/move")
    async def _(name: str, where: NewPlace) -> Response:
        moved = await with_queue(lambda queue: queue.move(name, where.place))
        return _answer(moved.model_dump())


def _run(place: Place, name: str) -> dict[str, Any]:
    """Return what the files of a run hold. Raises JobError for a name without a readable run."""
    path = place.run_dir(name)
    if path is None:
        raise JobError(Problem("run", "the name of a run", name, "GET /api/runs lists them."))
    folder = RunFolder(path)
    try:
        run = folder.read_run()
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(Problem("run", "a readable run.json", first_line(error))) from error
    return {
        "name": name,
        "run": run.content(),
        "progress": _content(path / "progress.json", lambda one: ProgressFile.read(one).content()),
        "metrics": _content(path / "metrics.json", lambda one: one),
        "checkpoints": [checkpoint.name for checkpoint in folder.checkpoints()],
    }


def _content(path: Path, read: Callable[[Any], _Value]) -> _Value | None:
    try:
        return read(small_json(path))
    except (OSError, ValueError, RecursionError):
        return None


def _answer(content: object, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")


def _problems(problems: Sequence[Problem], status: int) -> Response:
    return _answer({"problems": [problem.as_json() for problem in problems]}, status)


def _say_problems(request: Request, error: Exception) -> Response:
    if not isinstance(error, JobError):
        return _problems([internal_problem(error, "studio", "its lines")], 500)
    missing = any(problem.field in ("run", "job") for problem in error.problems)
    return _problems(error.problems, 404 if missing else 422)


def _say_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        Problem(
            ".".join(str(part) for part in one["loc"][1:]) or "body", "JSON of the API", one["msg"]
        )
        for one in error.errors()
    ]
    return _problems(found, 422)
