"""Next-token loss in chunks of tokens: no window's logits over the whole vocabulary ever exist."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from linearpatch.models.decoder import Decoder

# Logits in fp32 that exist at a time, in bytes: small beside the model's own activations, and enough tokens
# that the head's matrix product runs at full speed (on a GPU, isn't bound by reading its weights).
LOGIT_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}


@torch.no_grad()
def next_token_nll(decoder: Decoder, normed: Tensor, input_ids: Tensor) -> Tensor:
    """Negative log-likelihood of each token given those before it.

    Args:
        decoder: The model whose head is used.
        normed: Hidden states after the final norm, `[batch, tokens, hidden_size]`.
        input_ids: The tokens they were computed from, `[batch, tokens]`.

    Returns:
        `[batch, tokens - 1]` in fp32, natural logarithm.
    """
    losses = torch.empty(input_ids[:, 1:].numel(), device=normed.device)
    for part, hidden, labels in _chunks(decoder, normed, input_ids):
        losses[part] = _nll_in_place(decoder.logits(hidden).float(), labels)
    return losses.view(len(input_ids), -1)


def stream_nll(decoder: Decoder, stream: Tensor, input_ids: Tensor) -> Tensor:
    """`next_token_nll` of the stream that enters the final norm."""
    return next_token_nll(decoder, decoder.final_norm(stream), input_ids)


@torch.no_grad()
def stream_divergence(dense: Decoder, expected: Tensor, decoder: Decoder, stream: Tensor) -> Tensor:
    """KL divergence of each prediction from the dense model's, at the tokens where `stream_nll` has a loss.

    Args:
        dense: The dense model, whose final norm and head make of …
        expected: … what enters them the prediction p, `[batch, tokens, hidden_size]`.
        decoder: The other model, whose final norm and head make …
        stream: … of this the prediction q.

    Returns:
        Σ p (ln p − ln q) over the vocabulary, `[batch, tokens - 1]` in fp32.
    """
    models = ((dense, expected), (decoder, stream))
    rows = [(model, model.final_norm(one)[:, :-1].reshape(-1, one.shape[-1])) for model, one in models]
    divergences = torch.empty(len(rows[0][1]), device=stream.device)
    step = logit_rows(decoder, stream.device) // 2
    for start in range(0, len(divergences), step):
        part = slice(start, start + step)
        p, q = (functional.log_softmax(model.logits(one[part]).float(), dim=-1) for model, one in rows)
        divergences[part] = (p.exp() * (p - q)).sum(dim=-1).clamp_min(0)
    return divergences.view(len(stream), -1)


def stream_gradient(decoder: Decoder, stream: Tensor, input_ids: Tensor) -> Tensor:
    """Gradient of the mean next-token loss with respect to the stream that enters the final norm.

    Same shape and dtype as `stream`. The graph of the head exists for one chunk of tokens at a time.
    """
    leaf = stream.detach().requires_grad_()
    with torch.enable_grad():
        normed = decoder.final_norm(leaf)
    predicting = normed.detach()[:, :-1]
    gradient = predicting.new_empty(predicting.shape).flatten(0, 1)
    for part, hidden, labels in _chunks(decoder, normed.detach(), input_ids):
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad():
            logits = decoder.logits(hidden).float()
            loss = functional.cross_entropy(logits, labels.to(logits.device), reduction="sum") / len(gradient)
        gradient[part] = torch.autograd.grad(loss, hidden)[0]
    at_norm = torch.zeros_like(normed)  # the last token of a block predicts nothing
    at_norm[:, :-1] = gradient.view_as(predicting)
    return torch.autograd.grad(normed, leaf, at_norm)[0]


def compare_logits(expected: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
    """KL(expected ‖ actual) of each row in nats, and whether the likeliest tokens agree; overwrites the logits.

    Each pass over the logits is bound by memory, so it makes as few as it can.

    Args:
        expected: `[rows, vocabulary]` in fp32.
        actual: The same shape.
    """
    (largest, likeliest), (largest_actual, likeliest_actual) = expected.max(dim=1), actual.max(dim=1)
    expected.sub_(largest[:, None])
    actual.sub_(largest_actual[:, None])
    difference = expected - actual  # log p − log q, up to the normalizers
    weights = expected.exp_()
    sums, sums_actual = weights.sum(dim=1), actual.exp_().sum(dim=1)
    divergence = torch.einsum("rv,rv->r", weights, difference) / sums - sums.log() + sums_actual.log()
    agrees = (likeliest == likeliest_actual).float()
    return divergence.clamp_(min=0), agrees  # rounding may leave −1e-7


def _chunks(decoder: Decoder, normed: Tensor, input_ids: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Consecutive tokens, all blocks in a row: where they are, their hidden states, what they should predict.

    Callers write into arrays made before the loop: results kept between the chunks would lie where the
    next chunk's logits were to go, and memory would grow with every chunk.
    """
    hidden = normed[:, :-1].reshape(-1, normed.shape[-1])
    labels = input_ids[:, 1:].reshape(-1)
    step = logit_rows(decoder, hidden.device)
    for start in range(0, len(labels), step):
        part = slice(start, start + step)
        yield part, hidden[part], labels[part]


def logit_rows(decoder: Decoder, device: torch.device) -> int:
    """Tokens whose logits over the whole vocabulary may exist at a time."""
    budget = LOGIT_BYTES.get(device.type, LOGIT_BYTES["cuda"])
    return max(16, budget // (4 * decoder.vocab_size))


def _nll_in_place(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row; overwrites the logits.

    A second array of their size, as a log-softmax needs, costs more time than the arithmetic: on the CPU the
    system hands out fresh pages for it with every chunk.
    """
    targets = logits.gather(1, labels.to(logits.device)[:, None]).squeeze(1)
    largest = logits.amax(dim=1)
    sums = logits.sub_(largest[:, None]).exp_().sum(dim=1)
    return sums.log_().add_(largest).sub_(targets)
