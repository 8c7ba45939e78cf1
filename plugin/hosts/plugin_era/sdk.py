"""The plugin-era SDK, behind the few calls we make. It is the host's and licensed otherwise: it is
imported where the host provides it, when it is first needed (it takes ten seconds, while the
workers load), and nothing of it is copied.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ...base.errors import data_error

TRIES = 5  # of a write that the host's own, unlocked writing may undo


def _settled(value: Any) -> Any:
    """The value of a call that is a coroutine in some versions of the host and a plain one in
    others.
    """

    async def wait() -> Any:
        return await value

    return asyncio.run(wait()) if inspect.isawaitable(value) else value


class TlabSdk:
    """One job's side of the SDK; every call takes about 35 ms, for it rewrites the job's file."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._told = False

    def beat(self, percent: int, *, in_sweep: bool) -> bool:
        """Report progress; return whether the stop button was pressed.

        Not with the SDK's `progress_update`: on a stop it sets the job to STOPPED at once, and the
        host starts the next job beside workers that still save. `end` calls it when they are gone.
        """
        trainer = _trainer()
        try:
            if in_sweep:  # the bar of one run of the sweep
                trainer.add_job_data("sweep_subprogress", percent)
            else:
                _settled(trainer.job.update_progress(percent))
            return bool(self._data().get("stop"))
        except (
            OSError,
            ValueError,
        ) as error:  # the job's file is written without a lock: it may be read half-written
            if not self._told:
                self._say(f"progress could not be reported ({error}); trying again at the next one")
            self._told = True
            return False

    def end(self, percent: int) -> None:
        """Report the last progress, and let the SDK set the job to STOPPED if the stop button was
        pressed.
        """
        for _ in range(TRIES):
            try:
                _trainer().progress_update(percent)
            except KeyboardInterrupt:  # STOPPED is set
                return
            except (OSError, ValueError):
                continue
            return

    def put(self, values: Mapping[str, Any]) -> None:
        """Write job data and see that it is there: the host writes the same file without a lock,
        and its old copy may come back.
        """
        trainer, missing = _trainer(), dict(values)
        for _ in range(TRIES):
            try:
                for name, value in missing.items():
                    trainer.add_job_data(name, value)
                there = self._data()
            except (OSError, ValueError):
                continue
            missing = {name: value for name, value in missing.items() if there.get(name) != value}
            if not missing:
                return
        self._say(f"the host's job file did not take {', '.join(missing)}")

    def dataset_path(self, name: str) -> str:
        """A folder or hub id. Raises JobError (exit 3) for a name the host does not know."""
        from transformerlab.plugin import get_dataset_path  # pyright: ignore[reportMissingImports]  # the host has it, we do not

        try:
            return str(_settled(get_dataset_path(name)))
        except (
            Exception
        ) as error:  # the SDK raises exactly this class, and no other tells an unknown name
            raise data_error(
                "dataset_name",
                "a dataset of the host",
                f"{name!r}: {error}",
                "Download it there first.",
            ) from error

    def register_model(
        self, name: str, architecture: str, facts: Mapping[str, Any], pipeline_tag: str
    ) -> None:
        """Make `<workspace>/models/<name>` appear in the host's list; without a pipeline_tag the
        SDK would ask the hub.
        """
        _trainer().create_transformerlab_model(
            fused_model_name=name,
            model_architecture=architecture,
            json_data=dict(facts),
            pipeline_tag=pipeline_tag,
        )

    def _data(self) -> Mapping[str, Any]:
        return _settled(_trainer().job.get_job_data())


def _trainer() -> Any:
    from transformerlab.sdk.v1.train import tlab_trainer  # pyright: ignore[reportMissingImports]  # the host has it, we do not

    return tlab_trainer
