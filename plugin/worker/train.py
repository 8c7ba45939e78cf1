"""One training run on this rank: load, train, evaluate, save, fuse.

The worker's program is in worker/__main__.py.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..assembly import memory_advice
from ..assembly.memory import MakePlan
from ..assembly.precision import COMPUTE, choose_precision, make_deterministic
from ..assembly.stream import add_up, whole_report
from ..base.errors import Code, JobError, Problem
from ..config.params import Params
from ..data.documents import Documents
from ..data.stream import StreamState
from ..run.folder import RunFolder
from ..run.heartbeat import Heartbeat, heartbeat_path
from ..training import loop
from ..training.evaluate import evaluate
from ..training.exchange import gather_bytes, gather_values
from ..training.meters import (
    Stopwatch,
    measure_peak,
    memory_by_category,
    peak_bytes,
    resident_bytes,
)
from ..training.prefetch import Ahead
from ..training.sharding import reshard
from .accelerate_env import take_launchers_choice
from .checkpoints import (
    Contents,
    State,
    best_checkpoint,
    load_state,
    restore_training,
    save_checkpoint,
)
from .debug_bundle import write_bundle
from .load import load_data, load_model, prepare_data
from .publish import finish, model_facts
from .rendezvous import join_ranks, serve_store
from .reporter import Reporter
from .samples import SampleWatch
from .stop import Requests


class Run:
    """One training run on this rank, from parameters to the final event."""

    def __init__(self, params: Params, folder: RunFolder, checkpoint: Path | None = None):
        self.params, self.folder = params, folder
        self.checkpoint = checkpoint  # to go on from
        self.resumed = load_state(checkpoint) if checkpoint else None
        self.rank = int(os.environ.get("RANK", "0"))
        self.main = self.rank == 0
        self.leads = (
            int(os.environ.get("LOCAL_RANK", "0")) == 0
        )  # on every machine, one rank reports, listens and prepares
        self.heartbeat = Heartbeat(heartbeat_path(folder.path, self.rank))
        self.reporter = Reporter(
            folder,
            self.heartbeat,
            speaks=self.leads,
            first_step=self.resumed.step if self.resumed else 0,
        )
        self.requests = Requests(folder, reads_files=self.leads)
        self.started = time.perf_counter()
        self.moment = (
            self.resumed.moment if self.resumed else ""
        ) or datetime.now().astimezone().isoformat(timespec="seconds")
        self.baseline = 0 if torch.cuda.is_available() else resident_bytes()
        self.memory_plan: MakePlan | None = None
        self.first_eval = self.resumed.first_eval if self.resumed else {}
        self.last_eval = self.resumed.last_eval if self.resumed else {}
        self.evaluated: int | None = None  # the step of the last evaluation

    def go(self) -> dict[str, Any]:
        """Load, train, save, fuse. Returns the `result` of run.json."""
        params = self.params
        self._load()
        clock = self.data.clock
        self.reporter.phase("train", clock.plan.steps)
        self.requests.raise_if_stopped()
        self._first_evaluation()
        done, stopped, totals, peak = self._train()
        if stream := self.data.stream:
            self.data.truncation["train"] = whole_report(
                self.accelerator, stream.state_after(done).report
            )
            self.reporter.data("train", self.data.truncation["train"])
        result = self._result(done, stopped, totals, peak)
        self.reporter.hparams(
            params.as_json(), {"eval_loss": result["eval_loss"], "loss": result["loss"]}
        )
        if not stopped:
            model = self.trained.whole()
            if self.main:
                assert model is not None
                ranks = self.accelerator.num_processes
                result |= finish(
                    params,
                    self.folder,
                    self.data,
                    self.trained,
                    model,
                    self.reporter,
                    self.last_eval,
                    ranks,
                )
            self.accelerator.wait_for_everyone()
        result["seconds"] = round(time.perf_counter() - self.started, 2)
        return result

    def _first_evaluation(self) -> None:
        """Before the first step, or that of the step that the run stopped at before it could be
        made.
        """
        every = self.data.clock.plan.eval_every
        if not every:
            return
        if self.resumed is None:
            if self.params.eval_on_start:
                self._evaluate(0)
        elif self.resumed.step % every == 0 and self.resumed.eval_loss is None:
            self._evaluate(self.resumed.step)

    def out_of_memory(self, told: str) -> Problem:
        """The error of this run when memory has run out: what needs most, and what to do."""
        found = None
        if self.memory_plan:
            with contextlib.suppress(
                MemoryError, RuntimeError
            ):  # there may be no room left even for an estimate
                found = self.memory_plan()
        return memory_advice.out_of_memory(self.params, found, told)

    def _load(self) -> None:
        self.reporter.phase("load")
        self.accelerator = self._accelerator()
        self._agree_on_start()
        self._agree_on_moment()
        if (
            self.leads and not (self.folder / "data").exists()
        ):  # it appears whole, so a run that goes on has it
            moment = datetime.fromisoformat(self.moment)
            prepare_data(self.params, self.folder, self.reporter, self._between_rows, moment)
        self.accelerator.wait_for_everyone()
        self.data = load_data(
            self.params, self.folder, self.reporter, self.accelerator, self.resumed
        )
        if self.data.chat.moment and self.resumed and self.resumed.moment:
            self.reporter.log(f"resume: the chat template writes the time; it stays {self.moment}")
        self.heartbeat.beat("model")
        self.trained = load_model(
            self.params,
            self.data,
            self.reporter,
            self.accelerator,
            self._remember_plan,
            self.checkpoint,
        )
        self.progress = self._go_on()
        trained, sampler = self.trained, self.data.facts["sampler"]
        self.watch = SampleWatch(
            trained.model, self.data.chat, self._watched(), sampler, trained.predict
        )

    def _agree_on_start(self) -> None:
        """Raises JobError (exit 2) on every rank when one has another checkpoint, or none."""
        if self.params.num_machines == 1:  # all of its ranks were told the same one
            return
        steps = gather_values(self.accelerator, self.resumed.step if self.resumed else 0)
        if len(set(steps)) > 1:
            got = f"steps {', '.join(map(str, steps))}, by rank"
            fix = "Put run_dir on a disk that all machines share, or copy the checkpoint to each."
            raise JobError(Problem("resume", "the same checkpoint on every machine", got, fix))

    def _agree_on_moment(self) -> None:
        """Take rank 0's moment: every machine prepares its own data, in which a template may write
        it.
        """
        if self.params.num_machines > 1:
            self.moment = gather_values(self.accelerator, self.moment)[0]

    def _go_on(self) -> loop.Progress:
        """Where the run begins: at step 0, or as the checkpoint left it."""
        state, checkpoint, trained = self.resumed, self.checkpoint, self.trained
        if state is None or checkpoint is None:
            return loop.Progress()
        if state.step > self.data.clock.plan.steps:
            name = "num_train_epochs" if self.params.num_train_epochs else "train_steps"
            got = f"{self.data.clock.plan.steps} steps in all"
            raise JobError(Problem(name, f"at least the {state.step} steps already done", got))
        restore_training(checkpoint, trained.optimizer, trained.scheduler, state.step)
        if self.data.stream:
            path = checkpoint / f"stream-{self.accelerator.process_index}.safetensors"
            self.data.stream.restore(state.step, StreamState.load(path))
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.reporter.log(f"resume: going on from {checkpoint.name}")
        self.reporter.event("resumed", step=state.step, path=str(checkpoint))
        return loop.Progress(
            state.step, loop.Window(**state.window), loop.Totals(**state.totals), state.overflows
        )

    def _accelerator(self) -> Accelerator:
        # A launcher of somebody else's says nothing of CPUs: accelerate then joins no ranks on a
        # machine without a GPU.
        wants_cpu = (
            self.params.train_device == "cpu" or os.environ.get("ACCELERATE_USE_CPU") == "true"
        )
        on_cpu = wants_cpu or not torch.cuda.is_available()
        self.params, line = take_launchers_choice(self.params, os.environ)
        if line:
            self.reporter.log(line)
        device = torch.device("cpu" if on_cpu else "cuda")
        mixed, why = choose_precision(self.params, device)
        self.reporter.log(f"dtype: {why}")
        if flags := make_deterministic(device, self.reporter.log):
            self.reporter.log(f"determinism: {flags}")
        self.store = serve_store()
        return join_ranks(mixed, on_cpu=on_cpu)

    def _between_rows(self) -> None:
        self.heartbeat.beat("rows")
        self.requests.raise_if_stopped()

    def _remember_plan(self, plan: MakePlan) -> None:
        self.memory_plan = plan

    def _watched(self) -> Documents:
        return self.data.evaluation if len(self.data.evaluation) else self.data.train

    def _train(self) -> tuple[int, bool, loop.Totals, float]:
        """(finished steps, stopped early, totals, operations a second at most)."""
        accelerator, data, trained = self.accelerator, self.data, self.trained
        on_gpu = accelerator.device.type == "cuda"
        peak = 0.0
        if on_gpu:
            peak = accelerator.num_processes * measure_peak(
                accelerator.device, COMPUTE[accelerator.mixed_precision]
            )
        hooks = loop.Hooks(
            requests=lambda: loop.Requests(
                self.requests.stop(), self.requests.save(), self.requests.sample()
            ),
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
        make_step = add_up(accelerator, ahead, self.params.max_length) if data.stream else ahead
        try:
            done, stopped, totals = loop.train(
                accelerator,
                trained.module,
                trained.optimizer,
                trained.scheduler,
                make_step,
                plan,
                hooks,
                meters,
                self.progress,
            )
        except loop.NonFinite as error:
            bundle, rows = write_bundle(
                self.folder, error, None if data.stream else data.train, accelerator.process_index
            )
            named = f"; not finite: row {', '.join(rows[:5])}" if rows else ""
            self.reporter.log(f"what step {error.step} was made of: {bundle}{named}")
            raise
        finally:
            ahead.close()
        return done, stopped, totals, peak

    def _result(self, done: int, stopped: bool, totals: loop.Totals, peak: float) -> dict[str, Any]:
        held = memory_by_category(
            self.trained.module,
            self.trained.optimizer,
            peak_bytes(self.accelerator.device),
            self.baseline,
        )
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
            "memory": {
                **held,
                "estimate": self.trained.memory.as_json() if self.trained.memory else None,
            },
            "best_checkpoint": self._best(),
            "skipped_steps": totals.skipped,
            "cut_answer_tokens": totals.cut,
            "fill_tokens": totals.fill,
        }

    def _best(self) -> dict[str, Any] | None:
        path = best_checkpoint(self.folder)
        return {"path": str(path), "eval_loss": load_state(path).eval_loss} if path else None

    # --- hooks

    def _evaluate(self, step: int) -> None:
        self.reporter.phase("eval")
        data, beat = self.data, self.heartbeat.beat
        layout, size = self.trained.attention.layout, data.clock.eval_batch_size
        even = self.trained.sharded
        metrics = evaluate(
            self.accelerator,
            self.trained.module,
            data.evaluation,
            data.rules,
            size,
            layout,
            beat,
            even=even,
        )
        if not math.isfinite(metrics["eval/loss"]):
            fix = "Lower learning_rate, or look at the model's weights."
            raise JobError(
                Problem(
                    "loss",
                    "a finite evaluation loss",
                    f"{metrics['eval/loss']} at step {step}",
                    fix,
                    Code.NON_FINITE,
                )
            )
        self.first_eval = self.first_eval or metrics
        self.last_eval, self.evaluated = metrics, step
        self.reporter.metrics(step, metrics)
        self._sample(step)
        self.reporter.phase("train")

    def _sample(self, step: int) -> None:
        records = self.watch.samples() if self.main or self.trained.sharded else []
        reshard(self.trained.module)
        if self.main:
            for number, record in enumerate(records, start=1):
                self.reporter.sample(step, number, **record)
        self.accelerator.wait_for_everyone()

    def _save(self, step: int) -> None:
        self.reporter.phase("save")
        data, trained, params = self.data, self.trained, self.params
        stream = data.stream
        streams = (
            gather_bytes(self.accelerator, stream.state_after(step).as_bytes()) if stream else []
        )
        if self.main or trained.sharded:  # cut up, every rank has a hand in putting it together
            model, optimizer = trained.whole(), trained.optimizer_tensors()
            if self.main:
                assert model is not None
                facts = model_facts(params, data, trained.weight_dtype)
                contents = Contents(
                    model, data.tokenizer, facts, optimizer, streams, params.model_name
                )
                self.reporter.flush()  # a run that goes on from here finds the curves up to it
                path = save_checkpoint(
                    self.folder, self._state(step), contents, params.save_total_limit
                )
                self.reporter.event("checkpoint", step=step, path=str(path))
        self.accelerator.wait_for_everyone()
        self.reporter.phase("train")

    def _state(self, step: int) -> State:
        pass_, position = divmod(self.data.clock.seen(step), len(self.data.train))
        if stream := self.data.stream:
            own = stream.state_after(step)
            pass_, position = own.pass_, own.row
        scaler, at = self.accelerator.scaler, self.progress
        return State(
            step=step,
            pass_=pass_,
            position=position,
            seed=self.params.seed,
            step_size=self.data.clock.step_size,
            window=asdict(at.window),
            totals=asdict(at.totals),
            overflows=at.overflows,
            moment=self.moment if self.data.chat.moment else "",
            first_eval=self.first_eval,
            last_eval=self.last_eval,
            eval_loss=self.last_eval["eval/loss"] if self.evaluated == step else None,
            scaler=scaler.state_dict() if scaler is not None else {},
        )
