"""A learning rate from a few steps with each of several: a range test."""

from __future__ import annotations

import logging
import math

from linearpatch.distillation.loop import Diverged, Loop

log = logging.getLogger(__name__)

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
STEPS = 8  # with each


def best_rate(trial: Loop) -> float:
    """The rate of `RATES` with the lowest validation loss after `STEPS` steps from the same beginning.

    From the lowest up; once one has lost what the student began with, larger ones aren't tried. Where none gains
    anything, the lowest.

    Args:
        trial: A training at its beginning, which it is put back to.
    """
    start = trial.validation.loss()
    losses: dict[float, float] = {}
    for rate in RATES:
        trial.restart(rate)
        try:
            for _ in range(STEPS):
                trial.advance()
            loss = trial.validation.loss()
        except Diverged:
            loss = math.inf
        losses[rate] = loss if math.isfinite(loss) else math.inf
        if losses[rate] > start and len(losses) > 1:
            break
    trial.restart(RATES[0])
    best = min(losses, key=lambda rate: losses[rate])
    tried = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in losses.items())
    log.info("distill: validation loss %.4f, after %d steps by learning rate: %s; using %g", start, STEPS, tried, best)
    return best
