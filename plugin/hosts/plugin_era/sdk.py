"""Calls of the plugin-era SDK.

The SDK belongs to the host and has another licence: it is imported from the host when it is first
needed, and nothing of it is copied. The import takes ten seconds, while the workers load.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ...base.errors import data_error

TRIES = 5  # of a write, which the host's own unlocked writes may undo


def _awaited(value: Any) -> Any:
    """Return the value of a call that is a coroutine in some versions of the host."""

    async def wait() -> Any:
        return await value

    return asyncio.run(wait()) if inspect.isawaitable(value) else value


class TlabSdk:
    """The SDK for one job; every call takes about 35 ms, since it rewrites the job's file."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._told = False

    def beat(self, percent: int, *, in_sweep: bool) -> bool:
        """Report progress; return whether the stop button was pressed.

        The SDK's `progress_update` would set the job to STOPPED immediately on a stop, and the host
        would start the next job while our workers still save. `end` calls it when they have ended.
        """
        trainer = _trainer()
        try:
            if in_sweep:  # the bar of one run of the sweep
                trainer.add_job_data("sweep_subprogress", percent)
            else:
                _awaited(trainer.job.update_progress(percent))
            return bool(self._data().get("stop"))
        except (OSError, ValueError) as error:  # without a lock the job's file may be half-written
            if not self._told:
                self._say(f"progress could not be reported ({error}); trying again at the next one")
            self._told = True
            return False

    def end(self, percent: int) -> None:
        """Report the last progress; the SDK sets the job to STOPPED if the button was pressed."""
        for _ in range(TRIES):
            try:
                _trainer().progress_update(percent)
            except KeyboardInterrupt:  # STOPPED is set
                return
            except (OSError, ValueError):
                continue
            return

    def put(self, values: Mapping[str, Any]) -> None:
        """Write job data until it stays: the host writes the same file unlocked, from an old copy."""
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
        self._say(f"the host's job file lost {', '.join(missing)}")

    def dataset_path(self, name: str) -> str:
        """Return a folder or hub id. Raises JobError (exit 3) for a name unknown to the host."""
        from transformerlab.plugin import get_dataset_path  # pyright: ignore[reportMissingImports]  # the host has it, we do not

        try:
            return str(_awaited(get_dataset_path(name)))
        except Exception as error:  # the SDK raises exactly this class for an unknown name
            raise data_error(
                "dataset_name",
                "a dataset of the host",
                f"{name!r}: {error}",
                "Download it there first.",
            ) from error

    def register_model(
        self, name: str, architecture: str, facts: Mapping[str, Any], pipeline_tag: str
    ) -> None:
        """Add `<workspace>/models/<name>` to the host's list of models.

        Without a pipeline_tag the SDK would ask the hub.
        """
        _trainer().create_transformerlab_model(
            fused_model_name=name,
            model_architecture=architecture,
            json_data=dict(facts),
            pipeline_tag=pipeline_tag,
        )

    def _data(self) -> Mapping[str, Any]:
        return _awaited(_trainer().job.get_job_data())


def _trainer() -> Any:
    from transformerlab.sdk.v1.train import tlab_trainer  # pyright: ignore[reportMissingImports]  # the host has it, we do not

    return tlab_trainer
