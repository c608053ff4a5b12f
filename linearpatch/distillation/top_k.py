"""The loss of the paper: KL divergence over the dense model's K likeliest tokens (section 3.4).

Neither side ever holds the logits of a whole sequence: the teacher's are made for a few tokens at a time and
only their K largest are kept, the student's are made at those K places only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from linearpatch.distillation.chunks import at_least_fp32, mean_loss
from linearpatch.distillation.divergence import divergence, entropy, entropy_weights
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import logit_rows

# Rows of the head that are gathered at a time, in bytes. On the CPU large ones would come as fresh pages from the
# system each time, which takes longer than the arithmetic.
GATHER_BYTES = {"cpu": 12 * 2**20, "cuda": 256 * 2**20}
# Of a token whose probability is zero in fp16: the smallest number there, so that no divergence is infinite.
LEAST = 2.0**-24
GROUP = 32  # tokens of the vocabulary among which one maximum is taken first


@dataclass(frozen=True)
class TopK:
    """The dense model's likeliest tokens after each token.

    Attributes:
        probabilities: `[batch, tokens, k]` in fp16, each row summing to one.
        indices: Which tokens they are, `[batch, tokens, k]` int32.
    """

    probabilities: Tensor
    indices: Tensor


@torch.no_grad()
def top_k_targets(decoder: Decoder, normed: Tensor, k: int, temperature: float) -> TopK:
    """Softmax over the K largest logits of each token.

    Args:
        decoder: The dense model.
        normed: Its hidden states after the final norm, `[batch, tokens, hidden_size]`.
        k: How many.
        temperature: Divides the logits.
    """
    hidden = normed.flatten(0, -2)
    probabilities = torch.empty(len(hidden), k, dtype=torch.float16, device=hidden.device)
    indices = torch.empty(len(hidden), k, dtype=torch.int32, device=hidden.device)
    rows = logit_rows(decoder, hidden.device)
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        values, indices[part] = largest(decoder.logits(hidden[part]), k)
        probabilities[part] = (values.float() / temperature).softmax(dim=-1)
    shape = (*normed.shape[:-1], k)
    return TopK(probabilities.view(shape), indices.view(shape))


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K largest entries of each row and where they are, in no order: `[rows, k]` each.

    The K largest lie in the K groups with the largest maxima, so only those are searched: half the time of
    `torch.topk` on a large vocabulary, the same entries.
    """
    rows, size = logits.shape
    if size % GROUP or size // GROUP < 4 * k:
        top = logits.topk(k, dim=-1, sorted=False)
        return top.values, top.indices
    grouped = logits.view(rows, -1, GROUP)
    groups = grouped.amax(dim=-1).topk(k, dim=-1, sorted=False).indices
    candidates = grouped.gather(1, groups[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    top = candidates.topk(k, dim=-1, sorted=False)
    return top.values, groups.gather(1, top.indices // GROUP) * GROUP + top.indices % GROUP


def top_k_kl(
    decoder: Decoder,
    normed: Tensor,
    targets: TopK,
    temperature: float,
    kind: str = "forward",
    mixture: float = 0.5,
    token_weighting: str = "none",
) -> Tensor:
    """Mean over tokens of the divergence of both models, renormalised over the teacher's K tokens, times τ².

    Args:
        decoder: Whose head the student uses.
        normed: The student's hidden states after the final norm, `[batch, tokens, hidden_size]`.
        targets: The teacher's side.
        temperature: τ; its square keeps the gradient's size (Hinton et al., section 2).
        kind: As of `divergence.divergence`.
        mixture: As well.
        token_weighting: As of `logit_loss.LogitLoss`.
    """
    k = targets.indices.shape[-1]
    probabilities, indices = targets.probabilities.view(-1, k), targets.indices.view(-1, k)
    precision = at_least_fp32(normed)
    weights = torch.ones(len(indices), dtype=precision, device=normed.device)
    if token_weighting == "entropy":
        weights = entropy_weights(entropy(_teacher_log(probabilities.to(normed.device, precision))))

    def loss_of(part: slice, hidden: Tensor) -> Tensor:
        logits = decoder.logits_at(hidden, indices[part].to(hidden.device, torch.int64))
        teacher_log = _teacher_log(probabilities[part].to(hidden.device, at_least_fp32(logits)))
        student = (logits.to(teacher_log.dtype) / temperature).log_softmax(dim=-1)
        apart = divergence(student, teacher_log, kind, mixture)
        return temperature**2 * (weights[part].to(apart) * apart).sum()

    return mean_loss(normed.flatten(0, -2), loss_of, _rows(decoder, normed, k), tuple(decoder.head.parameters()))


def _teacher_log(probabilities: Tensor) -> Tensor:
    """Logarithms of rows that, rounded to fp16, don't quite sum to one any more."""
    return (probabilities / probabilities.sum(dim=-1, keepdim=True)).clamp(min=LEAST).log()


def _rows(decoder: Decoder, normed: Tensor, k: int) -> int:
    """Tokens whose K rows of the head may be gathered at a time."""
    budget = GATHER_BYTES.get(normed.device.type, GATHER_BYTES["cuda"])
    return max(16, budget // (k * decoder.hidden_size * normed.element_size()))
