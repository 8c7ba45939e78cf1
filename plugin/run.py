"""One training run on this rank: load, train, evaluate, save, fuse. The worker's program is in worker.py."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from typing import Any

import torch
from accelerate import Accelerator

from . import assembly, loop, memory, memory_advice, streaming
from .ahead import Ahead
from .checkpoints import State, save_checkpoint
from .data.documents import Documents
from .disk import check_room, count_parameters
from .evals import evaluate
from .finish import finish, model_facts
from .job import Code, JobError, Problem
from .loading import load_data, load_model, prepare_data
from .meters import Stopwatch, measure_peak, memory_by_category
from .params import Params
from .rendezvous import join_ranks, serve_store
from .reporting import Reporter
from .run_folder import RunFolder
from .sampler_watch import SampleWatch
from .stopping import Requests
from .watchdog import Heartbeat, heartbeat_path


class Run:
    """One training run on this rank, from parameters to the final event."""

    def __init__(self, params: Params, folder: RunFolder):
        self.params, self.folder = params, folder
        self.rank = int(os.environ.get("RANK", "0"))
        self.main = self.rank == 0
        self.leads = int(os.environ.get("LOCAL_RANK", "0")) == 0  # on every machine, one rank reports, listens and prepares
        self.heartbeat = Heartbeat(heartbeat_path(folder.path, self.rank))
        self.reporter = Reporter(folder, self.heartbeat, speaks=self.leads)
        self.requests = Requests(folder, reads_files=self.leads)
        self.started = time.perf_counter()
        self.baseline = 0 if torch.cuda.is_available() else _resident()
        self.memory_plan: memory.MakePlan | None = None
        self.first_eval: dict[str, float] = {}
        self.last_eval: dict[str, float] = {}

    def go(self) -> dict[str, Any]:
        """Load, train, save, fuse. Returns the `result` of run.json."""
        params = self.params
        self._load()
        clock = self.data.clock
        self.reporter.phase("train", clock.plan.steps)
        self.requests.raise_if_stopped()
        if params.eval_on_start and clock.plan.eval_every:
            self._evaluate(0)
        done, stopped, totals, peak = self._train()
        if stream := self.data.stream:
            self.data.truncation["train"] = streaming.whole_report(stream.state_after(done).report)
            self.reporter.data("train", self.data.truncation["train"])
        result = self._result(done, stopped, totals, peak)
        self.reporter.hparams(params.as_json(), {"loss": result["loss"], "eval_loss": result["eval_loss"]})
        if not stopped:
            if self.main:
                ranks = self.accelerator.num_processes
                result |= finish(params, self.folder, self.data, self.trained, self.reporter, self.last_eval, ranks)
            self.accelerator.wait_for_everyone()
        result["seconds"] = round(time.perf_counter() - self.started, 2)
        return result

    def out_of_memory(self, told: str) -> Problem:
        """The error of this run when memory has run out: what needs most, and what to do."""
        found = None
        if self.memory_plan:
            with contextlib.suppress(MemoryError, RuntimeError):  # there may be no room left even for an estimate
                found = self.memory_plan()
        return memory_advice.out_of_memory(self.params, found, told)

    def _load(self) -> None:
        self.reporter.phase("load")
        self.accelerator = self._accelerator()
        if self.leads:
            prepare_data(self.params, self.folder, self.reporter, self._between_rows)
        self.accelerator.wait_for_everyone()
        self.data = load_data(self.params, self.folder, self.reporter, self.accelerator)
        self.heartbeat.beat("model")
        self.trained = load_model(self.params, self.data, self.reporter, self.accelerator, self._remember_plan)
        self.watch = SampleWatch(self.trained.model, self.data.chat, self._watched(), self.data.facts["sampler"])
        if self.main:
            config = assembly.base_config(self.params, self.data.tokenizer, offline=True)
            check_room(self.params, *count_parameters(config, self.params))

    def _accelerator(self) -> Accelerator:
        on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "true"
        device = torch.device("cpu" if on_cpu or not torch.cuda.is_available() else "cuda")
        precision, why = assembly.choose_precision(self.params, device)
        self.reporter.log(f"dtype: {why}")
        self.store = serve_store()
        return join_ranks(precision, on_cpu=on_cpu)

    def _between_rows(self) -> None:
        self.heartbeat.beat("rows")
        self.requests.raise_if_stopped()

    def _remember_plan(self, plan: memory.MakePlan) -> None:
        self.memory_plan = plan

    def _watched(self) -> Documents:
        return self.data.evaluation if len(self.data.evaluation) else self.data.train

    def _train(self) -> tuple[int, bool, loop.Totals, float]:
        """(finished steps, stopped early, totals, operations a second at most)."""
        accelerator, data, trained = self.accelerator, self.data, self.trained
        on_gpu = accelerator.device.type == "cuda"
        peak = 0.0
        if on_gpu:
            peak = accelerator.num_processes * measure_peak(accelerator.device, assembly.COMPUTE[accelerator.mixed_precision])
        hooks = loop.Hooks(
            requests=lambda: loop.Requests(self.requests.stop(), self.requests.save(), self.requests.sample()),
            log=self.reporter.metrics,
            tick=self.reporter.tick,
            evaluate=self._evaluate,
            save=self._save,
            sample=self._sample,
            beat=self.heartbeat.beat,
        )
        meters = loop.Meters(Stopwatch(accelerator.device), trained.flops, peak)
        plan = data.clock.plan
        ahead = Ahead(trained.make_step, plan.steps, pin=on_gpu)
        make_step = streaming.add_up(accelerator, ahead, self.params.max_length) if data.stream else ahead
        try:
            done, stopped, totals = loop.train(
                accelerator, trained.module, trained.optimizer, trained.scheduler, make_step, plan, hooks, meters
            )
        finally:
            ahead.close()
        return done, stopped, totals, peak

    def _result(self, done: int, stopped: bool, totals: loop.Totals, peak: float) -> dict[str, Any]:
        held = memory_by_category(self.trained.module, self.trained.optimizer, self._peak(), self.baseline)
        seconds = max(totals.seconds, 1e-9)
        return {
            "outcome": "stopped" if stopped else "done",
            "steps": done,
            "seconds": round(time.perf_counter() - self.started, 2),
            "loss": totals.last_metrics.get("loss"),
            "eval_loss": self.last_eval.get("eval/loss"),
            "eval_loss_first": self.first_eval.get("eval/loss"),
            "truncation": self.data.truncation,
            "throughput": {
                "tokens_per_s": round(totals.tokens / seconds, 1),
                "supervised_tokens_per_s": round(totals.supervised / seconds, 1),
                "training_seconds": round(totals.seconds, 2),
                "flops_per_s": totals.flops / seconds,
                "mfu": totals.flops / seconds / peak if peak else None,
            },
            "memory": {**held, "estimate": self.trained.memory.as_json() if self.trained.memory else None},
            "skipped_steps": totals.skipped,
            "cut_answer_tokens": totals.cut,
        }

    def _peak(self) -> int:
        """Bytes at the run's peak: of the GPU, or of this process."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.accelerator.device)
        return _resident()

    # --- hooks

    def _evaluate(self, step: int) -> None:
        self.reporter.phase("eval")
        data, beat = self.data, self.heartbeat.beat
        layout, size = self.trained.attention.layout, data.clock.eval_batch_size
        metrics = evaluate(self.accelerator, self.trained.module, data.evaluation, data.rules, size, layout, beat)
        if not math.isfinite(metrics["eval/loss"]):
            fix = "Lower learning_rate, or look at the model's weights."
            raise JobError(
                Problem("loss", "a finite evaluation loss", f"{metrics['eval/loss']} at step {step}", fix, Code.NON_FINITE)
            )
        self.first_eval = self.first_eval or metrics
        self.last_eval = metrics
        self.reporter.metrics(step, metrics)
        self._sample(step)
        self.reporter.phase("train")

    def _sample(self, step: int) -> None:
        if self.main:
            for number, record in enumerate(self.watch.samples(), start=1):
                self.reporter.sample(step, number, **record)
        self.accelerator.wait_for_everyone()

    def _save(self, step: int) -> None:
        self.reporter.phase("save")
        if self.main:
            data, trained, params = self.data, self.trained, self.params
            pass_, position = divmod(step * data.clock.step_size, len(data.train))
            if data.stream:
                stream = data.stream.state_after(step)
                pass_, position = stream.pass_, stream.row
            state = State(step, pass_, position, params.seed)
            facts = model_facts(params, data, trained.weight_dtype)
            optimizer, keep = trained.optimizer, params.save_total_limit
            path = save_checkpoint(self.folder, state, trained.model, data.tokenizer, facts, optimizer, keep)
            self.reporter.event("checkpoint", step=step, path=str(path))
        self.accelerator.wait_for_everyone()
        self.reporter.phase("train")


def _resident() -> int:
    """The most bytes this process has held in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
