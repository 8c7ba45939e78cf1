"""Callbacks of the training loop: evaluation, samples and checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict

from accelerate import Accelerator

from ..assembly.data import Data
from ..assembly.resolve import Resolved
from ..assembly.rules import diffusion_facts
from ..base.errors import Code, JobError, Problem
from ..data.documents import Documents
from ..run.events import CheckpointEvent
from ..run.state import DRAWS, CheckpointState
from ..training.evaluate import evaluate
from ..training.exchange import gather_bytes
from ..training.loop import Hooks, Progress, Requests, Verdict
from ..training.sharding import reshard
from .checkpoints import Contents, save_checkpoint
from .load import Training
from .publish import model_facts
from .rank import Rank
from .samples import SampleWatch


class RunHooks:
    """Evaluations, samples and checkpoints of one run, on this rank."""

    def __init__(
        self,
        rank: Rank,
        accelerator: Accelerator,
        data: Data,
        resolved: Resolved,
        training: Training,
        progress: Progress,
    ):
        self._rank, self._accelerator = rank, accelerator
        self._data, self._resolved, self._training = data, resolved, training
        self._progress = progress
        resumed = rank.resumed
        self.first_eval: dict[str, float] = resumed.first_eval if resumed else {}
        self.last_eval: dict[str, float] = resumed.last_eval if resumed else {}
        self._collective = training.strategy.collective
        sampler = diffusion_facts(rank.params, data.rules).sampler
        self._watch = SampleWatch(
            training.model, data.chat, _watched(data), sampler, training.predict
        )

    def hooks(self) -> Hooks:
        rank, asked = self._rank, self._rank.requests
        return Hooks(
            requests=lambda: Requests(asked.stop(), asked.save(), asked.sample()),
            log=rank.reporter.metrics,
            tick=rank.reporter.tick,
            evaluate=self.evaluate,
            save=self.save,
            sample=self.sample,
            beat=rank.heartbeat.beat,
        )

    def evaluate(self, step: int) -> Verdict:
        """Evaluate after `step`, and sample. Raises JobError (exit 6) for a loss that is not
        finite.
        """
        metrics = self.measure(step)
        self.first_eval = self.first_eval or metrics
        self.last_eval = metrics
        self._rank.reporter.metrics(step, metrics)
        self.sample(step)
        self._rank.reporter.phase("train")
        if step == 0:  # weights that nothing has trained are neither kept nor the best
            return Verdict()
        best = self._progress.best
        found = best.see(metrics["eval/loss"])
        ranked = self._resolved.publish.value in ("best", "average")
        return Verdict(found and ranked, self.patience_is_exhausted)

    @property
    def patience_is_exhausted(self) -> bool:
        """Return whether the last evaluations in a row without a new best end the run."""
        return 0 < self._rank.params.patience <= self._progress.best.since

    def measure(self, step: int) -> dict[str, float]:
        """Return the evaluation of the weights as they stand, and report nothing. Raises JobError
        (exit 6) for a loss that is not finite.
        """
        data = self._data
        self._rank.reporter.phase("eval")
        metrics = evaluate(
            self._accelerator,
            self._training.module,
            data.evaluation,
            data.rules,
            data.clock.eval_batch_size,
            self._resolved.attention.layout,
            self._rank.heartbeat.beat,
            even=self._training.strategy.even,
        )
        if not math.isfinite(metrics["eval/loss"]):
            got = f"{metrics['eval/loss']} at step {step}"
            fix = "Lower learning_rate, or look at the model's weights."
            expected = "a finite evaluation loss"
            raise JobError(Problem("loss", expected, got, fix, Code.NON_FINITE))
        return metrics

    def sample(self, step: int) -> None:
        """Answer the watched prompts."""
        records = self._watch.samples() if self._rank.first or self._collective else []
        reshard(self._training.module)
        if self._rank.first:
            for number, record in enumerate(records, start=1):
                self._rank.reporter.sample(step, number, **record)
        self._accelerator.wait_for_everyone()

    def save(self, step: int) -> None:
        """Write checkpoint-<step>."""
        rank, training, reporter = self._rank, self._training, self._rank.reporter
        reporter.phase("save")
        own = training.steps.state(step)
        states = gather_bytes(self._accelerator, own) if own else []
        if rank.first or self._collective:
            model = training.strategy.full_model()
            optimizer = training.strategy.full_optimizer(training.optimizer)
            if rank.first:
                assert model is not None
                facts = model_facts(rank.params, self._data, training.weight_dtype)
                tokenizer, base = self._data.tokenizer, rank.params.base
                contents = Contents(model, tokenizer, facts, optimizer, states, base)
                reporter.flush()  # a run resumed from here finds the curves up to it
                limit, best = rank.params.save_total_limit, rank.params.held_best
                path = save_checkpoint(rank.folder, self._state(step), contents, limit, best)
                reporter.event(CheckpointEvent(step=step, path=str(path)))
        self._accelerator.wait_for_everyone()
        reporter.phase("train")

    def _state(self, step: int) -> CheckpointState:
        pass_, position = self._training.steps.position(step)
        scaler, at = self._accelerator.scaler, self._progress
        return CheckpointState(
            step=step,
            pass_=pass_,
            position=position,
            seed=self._rank.params.seed,
            step_size=self._data.clock.step_size,
            window=asdict(at.window),
            totals=asdict(at.totals),
            overflows=at.overflows,
            moment=self._rank.moment if self._data.chat.moment else "",
            draws=DRAWS,
            first_eval=self.first_eval,
            last_eval=self.last_eval,
            eval_loss=self.last_eval["eval/loss"] if at.evaluated else None,
            best_eval_loss=at.best.loss,
            evals_since_best=at.best.since,
            scaler=scaler.state_dict() if scaler is not None else {},
        )


def _watched(data: Data) -> Documents:
    return data.evaluation if len(data.evaluation) else data.train
