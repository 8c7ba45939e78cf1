"""`tlab_trainer`: arguments whose defaults beat the form; a stop raises KeyboardInterrupt."""

import argparse
import asyncio
import json
from pathlib import Path

from transformerlab.plugin import WORKSPACE_DIR, Job


class Trainer:
    def __init__(self):
        self._parser = argparse.ArgumentParser()
        self._parser.add_argument("--input_file")
        self._job = None

    def add_argument(self, name, default=None):
        self._parser.add_argument(name, default=default)

    @property
    def params(self):
        """A default that is not None wins over what the form sent."""
        known = {
            name: value
            for name, value in vars(self._parser.parse_known_args()[0]).items()
            if value is not None
        }
        return {**json.loads(Path(known["input_file"]).read_text())["config"], **known}

    @property
    def job(self):
        self._job = self._job or Job(self.params["job_id"])
        return self._job

    def add_job_data(self, key, value):
        asyncio.run(self.job.update_job_data_field(key, value))

    def progress_update(self, progress):
        data = asyncio.run(self.job.get_job_data())
        if data.get("sweep_progress") is not None and int(data["sweep_progress"]) != 100:
            asyncio.run(self.job.update_job_data_field("sweep_subprogress", progress))
            return
        asyncio.run(self.job.update_progress(progress))
        if asyncio.run(self.job.get_job_data()).get("stop", False):
            asyncio.run(self.job.update_status("STOPPED"))
            raise KeyboardInterrupt("Job stopped by user")

    def create_transformerlab_model(
        self,
        fused_model_name,
        model_architecture,
        json_data,
        output_dir=None,
        pipeline_tag=None,
        parent_model=None,
    ):
        assert pipeline_tag, "without one the hub is asked"
        folder = Path(
            output_dir or WORKSPACE_DIR, *([] if output_dir else ["models"]), fused_model_name
        )
        described = {"architecture": model_architecture, "pipeline_tag": pipeline_tag, **json_data}
        (folder / "index.json").write_text(
            json.dumps({"name": fused_model_name, "json_data": described})
        )
        (folder / "_tlab_provenance.json").write_text(json.dumps({"parameters": self.params}))


tlab_trainer = Trainer()
