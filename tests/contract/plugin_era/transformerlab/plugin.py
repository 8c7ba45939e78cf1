"""`transformerlab.plugin`, as far as a trainer uses it.

Importing it leaves a note of what was there at that moment.
"""

import asyncio
import importlib
import json
import os
import re
import time
from pathlib import Path

WORKSPACE_DIR = os.environ["TFL_WORKSPACE_DIR"]
CALL_S = float(os.environ.get("FAKE_CALL_S", "0"))  # how long every call of the host takes

for _name in os.environ.get("FAKE_IMPORTS", "").split():  # the SDK's own take about ten seconds
    importlib.import_module(_name)

with Path(WORKSPACE_DIR, "imports.jsonl").open("a") as _imports:
    _logs = sorted(str(path) for path in Path(WORKSPACE_DIR).glob("jobs/*/run*/log.txt"))
    _imports.write(
        json.dumps({"at": time.time(), "pid": os.getpid(), "logs of workers": _logs}) + "\n"
    )


def get_dataset_path(dataset_id):
    async def get():
        folder = Path(WORKSPACE_DIR, "datasets", re.sub(r"[^\w.-]", "_", dataset_id))
        if not (folder / "index.json").is_file():
            raise Exception(f"No dataset named {dataset_id} installed.")
        local = json.loads((folder / "index.json").read_text())["location"] == "local"
        return str(folder) if local else dataset_id

    return asyncio.run(get())


class Job:
    """A job's file, read, changed and written back without a lock."""

    def __init__(self, number):
        self.path = Path(WORKSPACE_DIR, "jobs", str(number), "index.json")

    async def get_job_data(self):
        time.sleep(CALL_S)
        return json.loads(self.path.read_text())["job_data"]

    async def change(self, change):
        time.sleep(CALL_S)
        content = json.loads(self.path.read_text())
        change(content)
        self.path.write_text(json.dumps(content))

    async def update_job_data_field(self, key, value):
        await self.change(lambda content: content["job_data"].update({key: value}))

    async def update_progress(self, value):
        assert isinstance(value, int)
        await self.change(
            lambda content: content.update(
                progress=value, beats=content["beats"] + [[time.time(), value]]
            )
        )

    async def update_status(self, value):
        """Set it, which lets the host start its next job, with a note of what still runs in this
        one's folder then.
        """
        await self.change(lambda content: content.update(status=value, alive=self.processes()))

    def processes(self):
        named = str(self.path.parent / "run").encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    found += [int(entry.name)] if named in (entry / "cmdline").read_bytes() else []
                except OSError:  # it ended meanwhile
                    continue
        return found
