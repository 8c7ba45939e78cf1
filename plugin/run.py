"""One training run on one rank: load, train, evaluate, save, fuse. The worker's program is in worker.py."""

from __future__ import annotations

import json
import math
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import get_scheduler

from . import assembly, fuse, loop, streaming
from .ahead import Ahead
from .checkpoints import State, save_checkpoint
from .data.chat import ChatFormat
from .data.documents import Documents
from .data.steps import step_slots
from .evals import evaluate
from .job import Code, JobError, Problem
from .meters import Stopwatch, measure_peak, memory_by_category
from .models.diffusion import DiffusionModel
from .models.flops import count_flops
from .models.load import load_tokenizer
from .models.publish import write_model
from .models.verify import TOKENS
from .optimizers import make_optimizer
from .packing import check_fits, choose_attention
from .params import Params
from .reporting import Reporter
from .run_folder import RunFolder, rename_whole
from .sampler_watch import SampleWatch
from .step import Step, build_step
from .stopping import Requests

SCHEDULES = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "constant_with_warmup": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
    "one_minus_sqrt": "warmup_stable_decay",
}


class Run:
    """One training run on this rank, from parameters to the final event."""

    def __init__(self, params: Params, folder: RunFolder):
        self.params, self.folder = params, folder
        self.rank = int(os.environ.get("RANK", "0"))
        self.main = self.rank == 0
        self.reporter = Reporter(folder, speaks=self.main)
        self.requests = Requests(folder, reads_files=self.main)
        self.started = time.perf_counter()
        self.baseline = 0 if torch.cuda.is_available() else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def go(self) -> dict[str, Any]:
        """Load, train, save, fuse. Returns the `result` of run.json."""
        params = self.params
        self.reporter.phase("load")
        self.accelerator = self._accelerator()
        self._load_data()
        self._load_model()
        clock = self.clock
        self.reporter.phase("train", clock.plan.steps)
        self.requests.raise_if_stopped()
        if params.eval_on_start and clock.plan.eval_every:
            self._evaluate(0)
        hooks = loop.Hooks(
            requests=lambda: loop.Requests(self.requests.stop(), self.requests.save(), self.requests.sample()),
            log=self.reporter.metrics,
            tick=self.reporter.tick,
            evaluate=self._evaluate,
            save=self._save,
            sample=self._sample,
        )
        meters = self._meters()
        ahead = Ahead(self.stream or self._make_step, clock.plan.steps, pin=self.accelerator.device.type == "cuda")
        make_step = streaming.add_up(self.accelerator, ahead, params.max_length) if self.stream else ahead
        try:
            done, stopped, totals = loop.train(
                self.accelerator, self.module, self.optimizer, self.scheduler, make_step, clock.plan, hooks, meters
            )
        finally:
            ahead.close()
        if self.stream:
            self.truncation["train"] = streaming.whole_report(self.stream.state_after(done).report)
            self.reporter.data("train", self.truncation["train"])
        result: dict[str, Any] = {
            "outcome": "stopped" if stopped else "done",
            "steps": done,
            "seconds": round(time.perf_counter() - self.started, 2),
            "loss": totals.last_metrics.get("loss"),
            "eval_loss": self.last_eval.get("eval/loss"),
            "eval_loss_first": self.first_eval.get("eval/loss"),
            "truncation": self.truncation,
            "throughput": {
                "tokens_per_s": round(totals.tokens / max(totals.seconds, 1e-9), 1),
                "supervised_tokens_per_s": round(totals.supervised / max(totals.seconds, 1e-9), 1),
                "training_seconds": round(totals.seconds, 2),
                "flops_per_s": totals.flops / max(totals.seconds, 1e-9),
                "mfu": totals.flops / max(totals.seconds, 1e-9) / meters.peak if meters.peak else None,
            },
            "memory": memory_by_category(self.module, self.optimizer, self._peak(), self.baseline),
            "skipped_steps": totals.skipped,
            "cut_answer_tokens": totals.cut,
        }
        self.reporter.hparams(params.as_json(), {"loss": result["loss"], "eval_loss": result["eval_loss"]})
        if not stopped:
            result |= self._finish()
        result["seconds"] = round(time.perf_counter() - self.started, 2)
        return result

    # --- loading

    def _accelerator(self) -> Accelerator:
        on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "true"
        device = torch.device("cpu" if on_cpu or not torch.cuda.is_available() else "cuda")
        precision, why = assembly.choose_precision(self.params, device)
        self.reporter.log(f"dtype: {why}")
        accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu)
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        assert accelerator.num_processes == ranks, f"accelerate runs {accelerator.num_processes} ranks instead of {ranks}"
        return accelerator

    def _load_data(self) -> None:
        """Rank 0 tokenises into the run folder; then every rank maps the same files."""
        params, data = self.params, self.folder / "data"
        if self.main:
            prepare = streaming.prepare if params.streaming else assembly.prepare
            prepared = prepare(params, self.reporter.log, between_rows=self.requests.raise_if_stopped)
            prepared.tokenizer.save_pretrained(data / "tokenizer")
            for split, documents in (("train", prepared.train), ("eval", prepared.evaluation)):
                documents.save(data / split)
                self.reporter.lengths(split, documents.lengths)
            reports = {split: report.as_json() for split, report in prepared.reports.items()}
            (data / "report.json").write_text(json.dumps(reports), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        reports = json.loads((data / "report.json").read_text(encoding="utf-8"))
        self.truncation = {
            split: {key: report[key] for key in ("rows", "documents", "truncated", "dropped")}
            for split, report in reports.items()
        }
        self.train, self.eval = Documents.load(data / "train"), Documents.load(data / "eval")
        self.tokenizer = load_tokenizer(str(data / "tokenizer"), offline=True)
        self.chat = ChatFormat(self.tokenizer)
        self.rules = assembly.step_rules(params, self.chat)
        self.clock = assembly.make_clock(params, len(self.train), len(self.eval), self.accelerator.num_processes)
        self.facts = assembly.diffusion_facts(params, self.rules)
        self.stream = self._open_stream() if params.streaming else None  # then self.train is only what it begins with
        for split in ("eval",) if params.streaming else ("train", "eval"):  # what a stream read is known at the end
            self.reporter.data(split, self.truncation[split])

    def _open_stream(self) -> streaming.StreamedSteps:
        evaluated, log = len(self.eval) > 0, self.reporter.log
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        return streaming.start_streaming(self.params, self.chat, self.rules, log, evaluated=evaluated, rank=rank, ranks=ranks)

    def _load_model(self) -> None:
        params, accelerator = self.params, self.accelerator
        compute = assembly.COMPUTE[accelerator.mixed_precision]
        self.weight_dtype = assembly.weight_dtype(params, compute)
        self.model = assembly.make_model(params, self.tokenizer, compute)
        trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        self.reporter.log(f"model: {trained:,} parameters train, weights kept in {str(self.weight_dtype).removeprefix('torch.')}")
        self.reporter.log("dropout: off; the masking noise is the regulariser, and the loss does not depend on the layout")
        self.attention = choose_attention(
            params, self.model.config, accelerator.device, compute, float(self.train.lengths.mean())
        )
        self.reporter.log(f"attention: {self.attention.why}")
        for documents in (self.train, self.eval):
            check_fits(documents, self.rules, self.attention.layout)
        module = DiffusionModel(self.model, self.chat.pad_id, self.attention.backend)
        optimizer = make_optimizer(
            module, kind=params.optim, learning_rate=params.learning_rate, weight_decay=params.weight_decay, seed=params.seed
        )
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        self.scheduler = self._scheduler(optimizer)
        self.watch = SampleWatch(self.model, self.chat, self.eval if len(self.eval) else self.train, self.facts["sampler"])
        self.first_eval: dict[str, float] = {}
        self.last_eval: dict[str, float] = {}

    def _meters(self) -> loop.Meters:
        """Count FLOPs; on CUDA, measure the peak that MFU is a share of."""
        device, ranks = self.accelerator.device, self.accelerator.num_processes
        on_gpu = device.type == "cuda"
        peak = measure_peak(device, assembly.COMPUTE[self.accelerator.mixed_precision]) * ranks if on_gpu else 0.0
        return loop.Meters(Stopwatch(device), count_flops(self.model), peak)

    def _peak(self) -> int:
        """Bytes at the run's peak: of the GPU, or of this process."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.accelerator.device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def _scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        name, steps = self.params.learning_rate_schedule, self.clock.plan.steps
        warmup = assembly.warmup_steps(self.params, steps)
        specific: dict[str, Any] = {}
        if name == "wsd":
            specific = {"num_decay_steps": max(1, steps // 10), "decay_type": "linear"}
        if name == "one_minus_sqrt":
            specific = {"num_decay_steps": max(1, steps - warmup), "decay_type": "1-sqrt", "min_lr_ratio": 0.001}
        return get_scheduler(SCHEDULES[name], optimizer, warmup, steps, scheduler_specific_kwargs=specific)

    def _make_step(self, step: int) -> Step:
        clock, accelerator = self.clock, self.accelerator
        slots = step_slots(len(self.train), clock.step_size, step, self.params.seed, clock.total)
        return build_step(
            slots,
            self.train,
            self.rules,
            batch_size=self.params.batch_size,
            layout=self.attention.layout,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
        )

    # --- hooks

    def _evaluate(self, step: int) -> None:
        self.reporter.phase("eval")
        layout = self.attention.layout
        metrics = evaluate(self.accelerator, self.module, self.eval, self.rules, self.clock.eval_batch_size, layout)
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
            seen = step * self.clock.step_size
            pass_, position = divmod(seen, len(self.train))
            if self.stream:
                stream = self.stream.state_after(step)
                pass_, position = stream.pass_, stream.row
            state = State(step, pass_, position, self.params.seed)
            params, keep = self.params, self.params.save_total_limit
            facts = self.facts
            if params.lora:
                facts = facts | fuse.adapter_facts(params.model_name, four_bit=params.load_in_4bit, dtype=self.weight_dtype)
            path = save_checkpoint(self.folder, state, self.model, self.tokenizer, facts, self.optimizer, keep)
            self.reporter.event("checkpoint", step=step, path=str(path))
        self.accelerator.wait_for_everyone()
        self.reporter.phase("train")

    def _finish(self) -> dict[str, Any]:
        """Save the adapter and publish the fused model; other ranks wait."""
        found: dict[str, Any] = {}
        params = self.params
        if self.main and params.lora:
            base = fuse.adapter_facts(params.model_name, four_bit=params.load_in_4bit, dtype=self.weight_dtype)
            part = self.folder / ".adapter.part"
            write_model(part, self.model, self.tokenizer, self.facts | base)
            rename_whole(part, self.folder / "adapter")
        if self.main and params.fuse_model:
            self.reporter.phase("fuse")
            fused = self._fuse()
            self.reporter.log(f"fused: {fused.path}; reloaded, largest logit difference {fused.differences[fused.chosen]:.2e}")
            found["fuse"] = fused.as_json()
        self.accelerator.wait_for_everyone()
        return found

    def _fuse(self) -> fuse.Fused:
        params = self.params
        longest = self.train[int(self.train.lengths.argmax())].ids[:TOKENS]
        ids = torch.tensor(longest[None].astype("int64"))
        facts = {**self.facts, "fuse_base": params.fuse_base}
        target = fuse.Target(self.folder / "fused", params.model_name, self.tokenizer, facts, self._card(), self.model, ids)
        if isinstance(self.model, PeftModel):
            adapter, four_bit = self.folder / "adapter", params.load_in_4bit
            return fuse.fuse_adapter(adapter, target, four_bit=four_bit, fuse_base=params.fuse_base, dtype=self.weight_dtype)
        return fuse.Fused(target.folder, {params.fuse_base: fuse.publish(self.model, target)}, params.fuse_base)

    def _card(self) -> fuse.Card:
        params = self.params
        packs = params.gradient_accumulation_steps * self.accelerator.num_processes
        step = f"{packs * streaming.pack_tokens(params)} tokens" if params.streaming else f"{self.clock.step_size} documents"
        table = {
            "base model": params.model_name or f"from scratch ({Path(params.model_config_file).name})",
            "trained": f"LoRA, rank {params.lora_r}, alpha {params.lora_alpha}" if params.lora else "all weights",
            "data": params.dataset_name,
            "steps": f"{self.clock.plan.steps} x {step}",
            "learning rate, schedule": f"{params.learning_rate:g}, {params.learning_rate_schedule}",
            "noise": f"{params.noise_schedule}, t in [{params.t_min:g}, {params.t_max:g}], loss per {self.rules.norm}",
            "end of answer": self.rules.eos_policy,
            "sampler": json.dumps(self.facts["sampler"]),
        }
        return fuse.Card(params.adaptor_name, table, self.last_eval)
