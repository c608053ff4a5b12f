"""A budget of latency, and the model that it gives measured again."""

from __future__ import annotations

from benchmarks.measure import Claim, embedded_model, text_blocks
from linearpatch.budgets.latency import Latency
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import DENSE, Edit
from linearpatch.pruners.tail import Tail

AT_MOST = 0.8  # of the dense model's time
AGAIN = 3  # more measurements of the model that was chosen, each of as many rounds


def claims() -> list[Claim]:
    """Measured again, latency is at most 3 % above what the budget allows, for reading and for decoding."""
    model = embedded_model()
    workspace = Workspace(model.decoder, text_blocks(model, 1, 64))

    def without(n: int) -> Edit:
        return DENSE.without_layers(range(model.decoder.num_layers - n, model.decoder.num_layers))

    made = []
    for phase in ("prefill", "decode"):
        budget = Latency(at_most=AT_MOST, phase=phase)
        sizes = range(1, model.decoder.num_layers - Tail().protect_last)
        found = budget.resolve(workspace, sizes, without)
        shares = []
        for _ in range(AGAIN):
            limits = budget.limits(workspace, sizes)
            value, _ = limits.measure(without(found.num_pruned_layers))
            shares.append(value / limits.dense)
        worst = max(shares)
        made.append(
            Claim(
                f"{phase}: time / dense, measured again, over the budget's {AT_MOST}",
                worst / AT_MOST, 1.03, "",
                f"{found.num_pruned_layers} layers removed; budget {found.value / found.dense:.3f}, "
                f"again {', '.join(f'{share:.3f}' for share in shares)}",
            )
        )  # fmt: skip
    return made
