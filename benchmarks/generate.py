"""Generated text against transformers' own sampling of the same batch."""

from __future__ import annotations

import torch

from benchmarks.measure import Claim, embedded_model, time_ratio
from linearpatch.models.sampling import Sampling, continuations, draws_of

SEQUENCES, TOKENS = 64, 32
TEMPERATURE, TOP_P = 1.0, 0.98


def claims() -> list[Claim]:
    """64 sequences of SmolLM2, 32 tokens each, temperature 1, top-p 0.98."""
    model = embedded_model()
    decoder, start = model.decoder, int(model.tokenizer.bos_token_id)
    draws = torch.stack([draws_of(str(row), TOKENS) for row in range(SEQUENCES)])
    prompts = [[start]] * SEQUENCES
    ids = torch.tensor(prompts, device=decoder.input_device)

    def ours() -> None:
        continuations(decoder, prompts, draws, Sampling(TEMPERATURE, TOP_P), num_tokens=TOKENS)

    @torch.inference_mode()
    def theirs() -> None:
        decoder.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=TEMPERATURE, top_p=TOP_P,
            top_k=0, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0,
        )  # fmt: skip

    ratio, mine, other = time_ratio(ours, theirs, repeats=2)
    detail = f"{mine:.1f} s / {other:.1f} s, {SEQUENCES} × {TOKENS} tokens, top-p {TOP_P}"
    return [Claim("generated text: time / transformers' generate, same batch", ratio, 1.25, "", detail)]
