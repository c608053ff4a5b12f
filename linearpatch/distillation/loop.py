"""The training loop: steps, validation, the best weights so far, and a state from which it resumes exactly."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from linearpatch.distillation.clock import TRIALS, Clock, seconds
from linearpatch.distillation.on_policy import OnPolicy
from linearpatch.distillation.parameters import Parameters
from linearpatch.distillation.patch_forms import at_rest
from linearpatch.distillation.sharding import gathered, own_batches, spread_like
from linearpatch.distillation.sources import Online, Source, order_of_epoch
from linearpatch.distillation.training import Lesson, Training
from linearpatch.distillation.validation import Validation
from linearpatch.errors import NumericsError
from linearpatch.models.edit import Edit
from linearpatch.models.runner import Runner
from linearpatch.runtime.distributed import Workers
from linearpatch.runtime.progress import training_bar
from linearpatch.runtime.signals import Terminated, stop_requests
from linearpatch.storage.cache import Entry

log = logging.getLogger(__name__)

POINTS = 200  # of the training loss curve, at most


class Diverged(NumericsError):
    """A loss isn't finite any more."""


class Loop:
    """One training, from its first step or from a saved state to the end.

    Args:
        training: Loss and settings.
        student: What is trained: its patches, which are `TrainablePatch`es, and its changed weights.
        source: Lessons of the training sequences, followed by those of the validation sequences.
        num_validation: How many of its sequences are for validation.
        seed: Of the order of the sequences.
        workers: Processes that share each step's sequences.

    Attributes:
        step: Steps done …
        total: … of so many.
        skipped: Those of them in which gradients overflowed (fp16 only), so that nothing moved.
        history: What was measured on the way: `step` with `loss`, `learning_rate`, `tokens_per_s`, or with
            `validation_loss`.
        best_step: After which step the validation loss was lowest …
        best_loss: … that loss …
        best: … and the parameters then.
        seconds: Spent on steps and validation, before a training was resumed as well.
    """

    def __init__(
        self,
        training: Training,
        student: Runner,
        source: Source,
        num_validation: int,
        *,
        seed: int = 0,
        workers: Workers | None = None,
    ) -> None:
        self.training = training
        self.student = student
        self.source = source
        self.seed = seed
        self.workers = workers or Workers()
        self.num_training = len(source.ids) - num_validation
        self.sequences_per_step = training.batch_size * training.accumulation
        self.steps_per_epoch = math.ceil(self.num_training / self.sequences_per_step)
        # Where a time is given their number isn't known before some are timed.
        self.total = training.num_steps(self.num_training, source.ids.shape[1]) or 0

        self.parameters = Parameters(student.edit, self.workers)
        validation_rows = range(self.num_training, len(source.ids))
        self.validation = Validation(training, student, source, validation_rows, self.workers)
        self.is_sharded = training.sharded
        self.optimizer = self._new_optimizer(training.learning_rate)
        self.schedule = self._new_schedule()
        # Gradients in fp16 overflow or vanish unless the loss is scaled; other dtypes need nothing.
        device = student.decoder.input_device
        self.scaler = torch.amp.GradScaler(device.type, enabled=student.decoder.model.dtype == torch.float16)
        self.scaler.scale(torch.zeros(1, device=device))  # so that a process without a sequence has a scale, too

        self.step = 0
        self.skipped = 0
        self.history: list[dict[str, float]] = []
        self.best_step = 0
        self.best_loss = math.inf
        self.best = self.parameters.copies()
        self.seconds = 0.0
        self._recent: list[float] = []  # losses of the steps since the last point of the history
        self._rate = training.learning_rate  # of the last step
        self.on_policy = OnPolicy(training.on_policy, student, source.ids, self.sequences_per_step, self.rows, seed)

    def run(
        self,
        *,
        save: Callable[[Entry], None] = lambda state: None,
        report: Callable[[Mapping[str, float]], None] = lambda point: None,
    ) -> None:
        """Train to the end.

        Args:
            save: Keeps a state; called now and then, and when the user or the cluster asks to stop.
            report: Called with every new point of the history.

        Raises:
            Diverged: the loss isn't finite.
            Terminated: there was a request to stop; the state is saved.
        """
        for point in self.history:
            report(point)
        if not self.history:
            validating = seconds(lambda: self._validate(report))
            if self.training.minutes is not None:
                self._fit_into(60 * self.training.minutes - self.training.validations * validating)
        with stop_requests() as stop, training_bar("distill", self.total, self.step) as show:
            clock = Clock(self.training.checkpoint_minutes, self.training.checkpoint_steps)
            seconds_before = self.seconds
            marks = {round(self.total * part / self.training.validations) for part in range(self.training.validations)}
            while self.step < self.total:
                self._recent.append(self.advance())
                clock.tick(self.sequences_per_step * self.source.ids.shape[1])
                self.seconds = seconds_before + clock.seconds
                show(self.step, self._recent[-1], self.learning_rate, clock.tokens_per_s)
                if clock.log_is_due():
                    self._log_progress(clock)
                if self.step % math.ceil(self.total / POINTS) == 0 or self.step == self.total:
                    mean = math.fsum(self._recent) / len(self._recent)
                    self._add_to_history(report, loss=mean, learning_rate=self._rate, tokens_per_s=clock.tokens_per_s)
                    self._recent = []
                if self.step in marks or self.step == self.total:
                    with clock.paused():
                        self._validate(report)
                    self._log_progress(clock)
                asked = self._stop_reason(stop())
                if asked or (clock.is_due() and self.step < self.total):
                    if self.is_sharded or self.workers.is_main:  # parts of other processes are gathered
                        state = self.state()
                    if self.workers.is_main:
                        save(state)
                    clock.saved()
                if asked:
                    raise Terminated(f"{asked} after step {self.step} of {self.total} of the distillation")
        if self.skipped:
            log.warning(
                "distill: %d of %d steps were skipped because gradients overflowed. Use model.dtype=bfloat16.",
                self.skipped,
                self.total,
            )

    def advance(self) -> float:
        """Take one step; the answer is its loss."""
        value = float(self.workers.sum(self._gradients()))
        if not math.isfinite(value):
            self._diverge("the loss", self.step + 1, value)
        self.parameters.sum_gradients()
        self.scaler.unscale_(self.optimizer)
        if self.training.max_grad_norm is not None:
            self.parameters.clip_gradients(self.training.max_grad_norm)
        self._rate = self.learning_rate
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:
            self.schedule.step()
        else:  # gradients overflowed, and nothing moved
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return value

    def _gradients(self) -> Tensor:
        """Add the gradients of this process' part of the next step; the answer is its part of the loss."""
        total = torch.zeros((), dtype=torch.float64)
        self.on_policy.prepare(self.step)
        for part, share in own_batches(
            self.rows(self.step), self.training.batch_size, self.workers, equally_often=self.is_sharded
        ):
            loss = self.training.loss(self.student, self._lesson(part))
            self.scaler.scale(loss * share).backward()
            total += loss.detach().cpu().double() * share
        return total

    def _lesson(self, rows: Sequence[int]) -> Lesson:
        """The lesson of some sequences of the next step; the dense model reads what the student wrote of them."""
        own = self.on_policy.sequences(self.step, rows)
        if own is None:
            return self.source.lesson(rows)
        return Online(self.training, self.student, own).lesson(range(len(own)))

    def _fit_into(self, time_s: float) -> None:
        """Choose the number of steps by the time that one takes; the first process decides."""
        step = seconds(self._gradients, TRIALS)
        if self.training.on_policy:  # what the first of them wrote serves several steps
            step += seconds(lambda: self.on_policy.prepare(self.step + self.on_policy.period)) / self.on_policy.period
            self.on_policy.forget()
        self.optimizer.zero_grad(set_to_none=True)
        steps = max(1, int(time_s / step)) if self.workers.is_main else 0
        self.total = int(self.workers.sum(torch.tensor(float(steps), dtype=torch.float64)))
        self.schedule = self._new_schedule()
        log.info(
            "distill: %d steps of %.2f s fit into distill.minutes=%g", self.total, step, self.training.minutes or 0
        )

    def _new_optimizer(self, learning_rate: float) -> torch.optim.AdamW:
        together = False if self.is_sharded else None  # one kernel for many weights takes them all whole or all sharded
        return torch.optim.AdamW(
            self.parameters.trained, lr=learning_rate, weight_decay=self.training.weight_decay, foreach=together
        )

    def _new_schedule(self) -> CosineAnnealingLR:
        least = self.learning_rate * self.training.final_learning_rate
        return CosineAnnealingLR(self.optimizer, max(1, self.total), eta_min=least)

    @property
    def num_tokens(self) -> int:
        """Tokens that were trained on, as often as each was."""
        epochs, steps = divmod(self.step, self.steps_per_epoch)
        sequences = epochs * self.num_training + min(steps * self.sequences_per_step, self.num_training)
        return int(sequences * self.source.ids.shape[1])

    def rows(self, step: int) -> Sequence[int]:
        """The sequences of a step, all processes together."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = order_of_epoch(self.num_training, epoch, self.seed)
        return order[position * self.sequences_per_step : (position + 1) * self.sequences_per_step]

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def best_edit(self) -> Edit:
        """The student as it was when the validation loss was lowest, with operators and weights that don't train."""
        now = self.parameters.copies()
        self.parameters.load(self.best)
        best = at_rest(self.student.edit)
        self.parameters.load(now)
        return best

    def restart(self, learning_rate: float) -> None:
        """Begin again where it began, with another learning rate; for trials of a few steps that keep it."""
        self.parameters.load(self.best)
        self.optimizer = self._new_optimizer(learning_rate)
        self.schedule = self._new_schedule()
        self.step = self.skipped = 0

    def state(self) -> Entry:
        """Everything that the next step depends on; of a sharded training in the first process, with all asking."""
        keep = self.workers.is_main
        moments = {
            f"{index}.{name}": values
            for index, entries in self.optimizer.state_dict()["state"].items()
            for name, values in entries.items()
        }
        own_text = self.on_policy.state()
        tensors = {
            **own_text.tensors,
            **_numbered("parameter", self.parameters.whole()),
            **_numbered("best", self.parameters.whole(self.best)),
            **{f"moment.{name}": gathered(values, keep=keep) for name, values in moments.items()},
            "rng": torch.get_rng_state(),
        }
        facts = {
            "step": self.step,
            "total": self.total,
            "skipped": self.skipped,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "recent": self._recent,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "seconds": self.seconds,
            "learning_rate": self.training.learning_rate,
            "on_policy": own_text.facts,
        }
        return Entry({name: tensor.clone() for name, tensor in tensors.items()}, facts)

    def restore(self, state: Entry) -> None:
        """Resume from a saved state."""
        count = len(self.parameters.trained)
        self.parameters.load(self.parameters.parts(_by_number("parameter", state.tensors, count)))
        self.best = [values.cpu() for values in self.parameters.parts(_by_number("best", state.tensors, count))]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, values in state.tensors.items():
            if name.startswith("moment."):
                _, index, kind = name.split(".", 2)
                owner = self.parameters.trained[int(index)]
                values = spread_like(values, owner) if values.dim() else values
                moments.setdefault(int(index), {})[kind] = values
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(state.facts["schedule"])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        if state.facts["scaler"]:
            self.scaler.load_state_dict(state.facts["scaler"])
        torch.set_rng_state(state.tensors["rng"])
        self.on_policy.restore(state.tensors, state.facts["on_policy"])
        self.step, self.total, self.skipped = (state.facts[name] for name in ("step", "total", "skipped"))
        self.history, self._recent = list(state.facts["history"]), list(state.facts["recent"])
        self.best_step, self.best_loss = state.facts["best_step"], state.facts["best_loss"]
        self.seconds = state.facts["seconds"]

    def _validate(self, report: Callable[[Mapping[str, float]], None]) -> None:
        value = self.validation.loss()
        if not math.isfinite(value):
            self._diverge("the validation loss", self.step, value)
        if value < self.best_loss:
            self.best_step, self.best_loss = self.step, value
            self.best = self.parameters.copies()
        self._add_to_history(report, validation_loss=value)

    def _diverge(self, what: str, step: int, value: float) -> None:
        kept = f" The best validation loss was after step {self.best_step}." if self.best_step else ""
        advice = f"Use a lower distill.learning_rate (now {self.training.learning_rate:g})"
        if step == 0:
            advice = "Nothing has been trained yet: look at the fitted patch, or use another"
        if self.scaler.is_enabled():
            advice += ", or model.dtype=bfloat16"
        raise Diverged(f"{what} is {value} at step {step} of {self.total} of the distillation.{kept} {advice}.")

    def _add_to_history(self, report: Callable[[Mapping[str, float]], None], **values: float) -> None:
        point = {"step": self.step, **values}
        self.history.append(point)
        report(point)

    def _log_progress(self, clock: Clock) -> None:
        losses = {
            kind: [point[kind] for point in self.history if kind in point] for kind in ("loss", "validation_loss")
        }
        left = (self.total - self.step) * self.sequences_per_step * self.source.ids.shape[1] / clock.tokens_per_s
        log.info(
            "distill: step %d of %d, loss %.4f, validation %.4f (best %.4f after step %d), %.0f tokens/s, %.0f s left",
            self.step, self.total, (self._recent or losses["loss"])[-1], losses["validation_loss"][-1],
            self.best_loss, self.best_step, clock.tokens_per_s, left,
        )  # fmt: skip
        clock.reported()

    def _stop_reason(self, asked: str | None) -> str | None:
        """Whether any process was asked to; all stop after the same step."""
        flag = self.workers.sum(torch.tensor(float(asked is not None)))
        return (asked or "a stop signal to another process") if float(flag) else None


def _numbered(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{index}": tensor for index, tensor in enumerate(tensors)}


def _by_number(name: str, tensors: Mapping[str, Tensor], count: int) -> list[Tensor]:
    return [tensors[f"{name}.{index}"] for index in range(count)]
