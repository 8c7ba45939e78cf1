"""One training run on this rank: load, train, evaluate, save, publish.

The worker's program is in worker/__main__.py.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from accelerate import Accelerator

from ..assembly.data import Data
from ..assembly.model import base_config, with_block_size
from ..assembly.precision import COMPUTE, choose_float8, choose_precision, make_deterministic
from ..assembly.resolve import Facts, Resolved, resolve
from ..assembly.training_data import training_data
from ..base.errors import JobError, Problem
from ..config.params import Params
from ..run.events import ResumedEvent
from ..run.lines import counted
from ..run.outcome import (
    BestCheckpoint,
    EarlyStop,
    MemoryEstimate,
    MemoryUse,
    Result,
    Throughput,
)
from ..run.state import read_state
from ..training import loop
from ..training.evaluate import BestSoFar
from ..training.exchange import gather_values
from ..training.meters import (
    Meters,
    Stopwatch,
    Totals,
    Window,
    measure_peak,
    memory_by_category,
    peak_bytes,
)
from ..training.prefetch import Prefetcher
from .checkpoints import best_checkpoints, restore_training
from .debug_bundle import write_bundle
from .hooks import RunHooks
from .load import Log, Training, build_training, load_data, load_truncation, prepare_data
from .out_of_memory import explain_out_of_memory
from .publish import End, final_weights, finish
from .rank import Rank
from .rendezvous import join_ranks, serve_store


def train_rank(rank: Rank) -> Result:
    """Train as run.json asks, then publish. Return the `result` of run.json.

    Raises JobError; StopRequested before the first step.
    """
    rank.reporter.phase("load")
    asked, rank = rank.params, rank.with_launchers_choice()
    store = serve_store()  # it serves until this function returns
    accelerator = join(rank.params, rank.reporter.log)
    _agree_on_checkpoint(rank, accelerator)
    rank = _agree_on_moment(rank, accelerator)
    rank = replace(rank, params=with_block_size(rank.params, rank.reporter.log))
    data = _load_data(rank, accelerator)
    rank.heartbeat.beat("model")
    resolved = _resolve(rank, accelerator, data)
    with explain_out_of_memory(rank.params, resolved.memory):
        result = _train_and_publish(rank, accelerator, data, resolved)
    del store
    return result.model_copy(update={"effective": rank.params.differences(asked)})


def join(params: Params, log: Log) -> Accelerator:
    """Choose device and precision, and meet the other ranks."""
    # Another launcher may not say that it runs on CPUs: accelerate then joins no ranks on a machine
    # without a GPU.
    wants_cpu = params.train_device == "cpu" or os.environ.get("ACCELERATE_USE_CPU") == "true"
    on_cpu = wants_cpu or not torch.cuda.is_available()
    device = torch.device("cpu" if on_cpu else "cuda")
    mixed = choose_precision(params, device).value
    choose_float8(params, device, COMPUTE[mixed])  # refused before data is read
    if flags := make_deterministic(device, log):
        log(f"determinism: {flags}")
    return join_ranks(mixed, on_cpu=on_cpu)


def _agree_on_checkpoint(rank: Rank, accelerator: Accelerator) -> None:
    """Raise JobError (exit 2) on every rank when one has another checkpoint, or none."""
    if rank.params.num_machines == 1:  # its ranks were all given the same one
        return
    steps = gather_values(accelerator, rank.resumed.step if rank.resumed else 0)
    if len(set(steps)) > 1:
        got = f"steps {', '.join(map(str, steps))}, by rank"
        fix = "Put run_dir on a disk that all machines share, or copy the checkpoint to each."
        raise JobError(Problem("resume", "the same checkpoint on every machine", got, fix))


def _agree_on_moment(rank: Rank, accelerator: Accelerator) -> Rank:
    """Take rank 0's moment: each machine prepares its own data, in which a template may write it."""
    if rank.params.num_machines == 1:
        return rank
    return replace(rank, moment=gather_values(accelerator, rank.moment)[0])


def _load_data(rank: Rank, accelerator: Accelerator) -> Data:
    params, folder, reporter = rank.params, rank.folder, rank.reporter
    if (
        rank.leads and not (folder / "data").exists()
    ):  # it appears complete, so a resumed run has it
        moment = datetime.fromisoformat(rank.moment)
        prepare_data(params, folder, reporter, rank.between_rows, moment)
    accelerator.wait_for_everyone()
    data = load_data(params, folder, accelerator.num_processes, rank.resumed)
    truncation = load_truncation(folder)
    for split in ("train", "eval") if training_data(params).indexed else ("eval",):
        reporter.data(split, truncation[split])
    if data.chat.moment and rank.resumed and rank.resumed.moment:
        reporter.log(f"resume: the chat template writes the time; it stays {rank.moment}")
    _check_length(rank, data)
    return data


def _check_length(rank: Rank, data: Data) -> None:
    """Raise JobError (exit 2) when the run would end before the checkpoint it resumes from."""
    done, steps = rank.resumed.step if rank.resumed else 0, data.clock.cadence.steps
    if done > steps:
        params = rank.params
        name = "train_tokens" if params.train_tokens else "train_steps"
        name = "num_train_epochs" if params.num_train_epochs else name
        got = f"{steps} steps in all"
        raise JobError(Problem(name, f"at least the {done} steps already done", got))


def _resolve(rank: Rank, accelerator: Accelerator, data: Data) -> Resolved:
    facts = Facts(
        params=rank.params,
        config=base_config(rank.params, data.tokenizer),
        data=data,
        device=accelerator.device,
        ranks=accelerator.num_processes,
        saves=rank.first,
    )
    resolved = resolve(facts, agree=lambda fits: all(gather_values(accelerator, fits)))
    for line in resolved.lines():
        rank.reporter.log(line)
    return resolved


def _train_and_publish(
    rank: Rank, accelerator: Accelerator, data: Data, resolved: Resolved
) -> Result:
    params, reporter = rank.params, rank.reporter
    training = build_training(params, data, resolved, accelerator, reporter.log, rank.checkpoint)
    progress = _resume(rank, accelerator, training)
    hooks = RunHooks(rank, accelerator, data, resolved, training, progress)
    reporter.phase("train", data.clock.cadence.steps)
    rank.requests.raise_if_stopped()
    peak = measure_devices(accelerator)
    stopped = _run_loop(rank, accelerator, data, training, hooks, progress, peak)
    truncation = load_truncation(rank.folder)
    if report := training.steps.report(accelerator, progress.done):
        truncation["train"] = report
        reporter.data("train", report)
    early = None if stopped else _early_stop(progress, data.clock.cadence)
    if early:
        reporter.log(
            f"patience: the run ends at step {progress.done} of {early.planned_steps}, after"
            f" {counted(early.evaluations, 'evaluation')} in a row without a new best"
        )
    totals, best = progress.totals, best_checkpoints(rank.folder, 1)
    best_loss = read_state(best[0]).eval_loss if best else None
    result = Result(
        outcome="stopped" if stopped else "done",
        steps=progress.done,
        seconds=round(time.perf_counter() - rank.started, 2),
        loss=totals.last_metrics.get("loss"),
        eval_loss=hooks.last_eval.get("eval/loss"),
        eval_loss_first=hooks.first_eval.get("eval/loss"),
        truncation=truncation,
        throughput=_throughput(totals, peak),
        memory=_memory(rank, accelerator, training, resolved),
        early_stop=early,
        best_checkpoint=None
        if best_loss is None
        else BestCheckpoint(path=str(best[0]), eval_loss=best_loss),
        skipped_steps=totals.skipped,
        cut_answer_tokens=totals.cut,
        fill_tokens=totals.fill,
    )
    reporter.hparams(params.as_json(), {"eval_loss": result.eval_loss, "loss": result.loss})
    if not stopped:
        end = End(
            step=progress.done,
            before=hooks.first_eval if data.clock.cadence.eval_on_start else {},
            last=hooks.last_eval,
            measure=lambda: hooks.measure(progress.done),
        )
        final = final_weights(rank, training, resolved.publish, end)
        if rank.first:
            fused = finish(
                params, rank.folder, data, training, final, reporter, accelerator.num_processes
            )
            found = {"fuse": fused, "published": final.record}
            result = result.model_copy(
                update={name: value for name, value in found.items() if value}
            )
        accelerator.wait_for_everyone()
    seconds = round(time.perf_counter() - rank.started, 2)
    return result.model_copy(update={"seconds": seconds})


def _resume(rank: Rank, accelerator: Accelerator, training: Training) -> loop.Progress:
    """Return where the run begins: at step 0, or as the checkpoint left it."""
    state, checkpoint = rank.resumed, rank.checkpoint
    if state is None or checkpoint is None:
        return begin(rank.params, training, rank.reporter.log)
    restore_training(checkpoint, training.optimizer, training.scheduler, state.step)
    stream = checkpoint / f"stream-{accelerator.process_index}.safetensors"
    training.steps.restore(state.step, stream)
    if accelerator.scaler is not None and state.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    rank.reporter.log(f"resume: continuing from {checkpoint.name}")
    rank.reporter.event(ResumedEvent(step=state.step, path=str(checkpoint)))
    return loop.Progress(
        state.step,
        Window(**state.window),
        Totals(**state.totals),
        state.overflows,
        evaluated=state.eval_loss is not None,
        best=BestSoFar(state.best_eval_loss, state.evals_since_best),
    )


def begin(params: Params, training: Training, log: Log) -> loop.Progress:
    """Return step 0, with the optimizer of the checkpoint that `start_from` names, if any."""
    if params.start_from:
        start = Path(params.start_from)
        restore_training(start, training.optimizer, training.scheduler, 0)
        log(
            f"start_from: weights and optimizer of {start.name} of run {start.parent.name};"
            " steps, schedule and order of the data are new"
        )
    return loop.Progress()


def measure_devices(accelerator: Accelerator) -> float:
    """Return the operations a second that all GPUs together reach; 0 on CPUs."""
    if accelerator.device.type != "cuda":
        return 0.0
    compute = COMPUTE[accelerator.mixed_precision]
    return accelerator.num_processes * measure_peak(accelerator.device, compute)


def _run_loop(
    rank: Rank,
    accelerator: Accelerator,
    data: Data,
    training: Training,
    hooks: RunHooks,
    progress: loop.Progress,
    peak: float,
) -> bool:
    """Train. Return whether the run was stopped. Raises NonFinite, its debug bundle written."""
    cadence = data.clock.cadence
    if progress.evaluated and hooks.patience_is_exhausted:  # resumed at its end
        cadence = replace(cadence, steps=progress.done)
    try:
        return run_steps(rank.params, accelerator, training, cadence, hooks.hooks(), progress, peak)
    except loop.NonFinite as error:
        documents = data.train if training_data(rank.params).indexed else None
        bundle, rows = write_bundle(rank.folder, error, documents, accelerator.process_index)
        named = f"; not finite: row {', '.join(rows[:5])}" if rows else ""
        rank.reporter.log(f"what step {error.step} was made of: {bundle}{named}")
        raise


def run_steps(
    params: Params,
    accelerator: Accelerator,
    training: Training,
    cadence: loop.Cadence,
    hooks: loop.Hooks,
    progress: loop.Progress,
    peak: float,
) -> bool:
    """Train from `progress`, the next step built ahead. Return whether the run was stopped.

    `peak`: operations a second of all devices together. Raises NonFinite.
    """
    device = accelerator.device
    trainer = loop.Trainer(
        accelerator=accelerator,
        module=training.module,
        optimizer=training.optimizer,
        scheduler=training.scheduler,
        max_grad_norm=params.max_grad_norm,
        seed=params.seed,
    )
    meters = Meters(Stopwatch(device), training.flops, peak)
    ahead = Prefetcher(training.steps, cadence.steps, pin=device.type == "cuda")
    make_step = training.steps.count_together(accelerator, ahead)
    try:
        return loop.train(trainer, make_step, cadence, hooks, meters, progress)
    finally:
        ahead.close()


def _early_stop(progress: loop.Progress, cadence: loop.Cadence) -> EarlyStop | None:
    """Return the end of a run that patience ended; None for one that made all its steps."""
    if progress.done == cadence.steps:
        return None
    return EarlyStop(evaluations=progress.best.since, planned_steps=cadence.steps)


def _throughput(totals: Totals, peak: float) -> Throughput:
    seconds = max(totals.seconds, 1e-9)
    return Throughput(
        tokens_per_s=round(totals.tokens / seconds, 1),
        supervised_tokens_per_s=round(totals.supervised / seconds, 1),
        training_seconds=round(totals.seconds, 2),
        flops_per_s=totals.flops / seconds,
        mfu=totals.flops / seconds / peak if peak else None,
    )


def _memory(
    rank: Rank, accelerator: Accelerator, training: Training, resolved: Resolved
) -> MemoryUse:
    peak = peak_bytes(accelerator.device)
    held = memory_by_category(training.module, training.optimizer, peak, rank.resident)
    estimate = MemoryEstimate(**resolved.memory.memory.holding(training.graph_bytes).as_json())
    return MemoryUse(**held, estimate=estimate)
