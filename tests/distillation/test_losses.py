"""Loss and gradients of the student against the plain procedure: a whole pruned model, all logits, fp64."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES, tiny_model
from edits import edit_of, in_projection, on_mlp, on_stream, view_of
from torch.nn import functional

from linearpatch.distillation.feature_mse import FeatureMSE
from linearpatch.distillation.full_kl import FullKL
from linearpatch.distillation.language_model import LanguageModel
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.distillation.patch_forms import FullPatch
from linearpatch.distillation.sources import Online
from linearpatch.distillation.stream_mse import StreamMSE
from linearpatch.distillation.top_k import TopK, largest, top_k_kl, top_k_targets
from linearpatch.distillation.training import Lesson
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.passes import record
from linearpatch.models.places import InProjection, OnOutput
from linearpatch.models.runner import Runner
from linearpatch.models.units import interfaces_of

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
SIZE = 32


def maps(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.eye(SIZE, dtype=dtype) + 0.1 * torch.randn(SIZE, SIZE, generator=generator).to(dtype)
        for _ in range(count)
    ]


def student_of(decoder, removed, place=on_stream, **settings):
    sites = [place(one.start, one.end) for one in interfaces_of(removed)]
    matrices = maps(len(sites))
    if place is in_projection:
        width = InProjection.projection_of(decoder, 0).width
        matrices = [0.1 * torch.randn(width, SIZE).double() for _ in sites]
    patches = [FullPatch(matrix, None, around_start=False).double() for matrix in matrices]
    edit = edit_of(removed, zip(sites, patches, strict=True))
    return Runner(decoder, edit, **settings), list(zip(sites, matrices, strict=True))


def modules_of(student):
    return [placed.module for placed in student.edit.operators]


def whole_view(decoder, removed, patches):
    """The pruned model as a Hugging Face model, with trainable patches in fp64; and its patches' weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        view = view_of(decoder, removed, [(site, LinearMap(matrix)) for site, matrix in patches])
    finally:
        torch.set_default_dtype(before)
    weights = [weight for name, weight in view.named_parameters() if "linear_patch_" in name]
    return view, [weight.requires_grad_() for weight in weights]


def in_fp64(family):
    model = tiny_model(family).double()
    if "moe" in family:
        model.set_experts_implementation("eager")  # the others know no fp64
    return decoder_of(model)


def places_of(decoder):
    found = [on_stream]
    for place, find in ((on_mlp, OnOutput.output_of), (in_projection, InProjection.projection_of)):
        with suppress(ModelError):
            find(decoder, 0)
            found.append(place)
    return found


CASES = {"one interface": (2, 3), "two interfaces": (1, 3, 4), "at the front": (0, 1), "at the end": (4, 5)}


@pytest.mark.parametrize("removed", CASES.values(), ids=CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_is_the_patched_model(family, removed):
    decoder = in_fp64(family)
    for place in places_of(decoder) if 0 not in removed else [on_stream]:
        student, patches = student_of(decoder, removed, place)
        recording = record(decoder, IDS, {student.entry, decoder.num_layers})
        logits = decoder.logits(decoder.final_norm(student.run(recording.streams[student.entry], recording.calls)))
        view, _ = whole_view(decoder, removed, patches)
        assert torch.allclose(logits, view(input_ids=IDS, use_cache=False).logits, atol=1e-9)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_top_k_loss_and_gradients_are_the_plain_ones(family, recompute):
    decoder = in_fp64(family)
    training, removed = OutputKL(top_k=20, temperature=1.5), (1, 3)
    student, patches = student_of(decoder, removed, recompute=recompute)
    loss = training.loss(student, Online(training, student, IDS).lesson([0, 1]))
    loss.backward()

    view, weights = whole_view(decoder, removed, patches)
    with torch.no_grad():
        likeliest = decoder.model(input_ids=IDS, use_cache=False).logits.topk(20, dim=-1)
    teacher = (likeliest.values / 1.5).softmax(dim=-1).half().double()
    teacher = teacher / teacher.sum(dim=-1, keepdim=True)
    student_logits = view(input_ids=IDS, use_cache=False).logits.gather(-1, likeliest.indices)
    q = (student_logits / 1.5).softmax(dim=-1)
    expected = 1.5**2 * (teacher * (teacher / q).log()).sum(dim=-1).mean()
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for patch, weight in zip(modules_of(student), weights, strict=True):
        gradient = patch.moved["matrix"].grad
        assert gradient.abs().max() > 0
        assert torch.allclose(gradient, weight.grad.T, atol=1e-6 * weight.grad.abs().max())


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2", "gptj"])
def test_full_kl_is_the_plain_one(family):
    decoder = in_fp64(family)
    training, removed = FullKL(temperature=2.0), (2, 3)
    student, patches = student_of(decoder, removed)
    loss = training.loss(student, Online(training, student, IDS).lesson([0, 1]))
    loss.backward()
    view, (weight,) = whole_view(decoder, removed, patches)
    with torch.no_grad():
        p = (decoder.model(input_ids=IDS, use_cache=False).logits / 2).softmax(dim=-1)
    q = (view(input_ids=IDS, use_cache=False).logits / 2).softmax(dim=-1)
    expected = 4 * (p * (p / q).log()).sum(dim=-1).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.allclose(modules_of(student)[0].moved["matrix"].grad, weight.grad.T, atol=1e-12)


def test_feature_mse_is_the_error_behind_each_gap():
    decoder = decoder_of(tiny_model().double())
    student, patches = student_of(decoder, (1, 3))
    training = FeatureMSE()
    lesson = Online(training, student, IDS).lesson([0, 1])
    loss = training.loss(student, lesson)
    streams = record(decoder, IDS).streams
    first = streams[1] @ patches[0][1]
    calls = record(decoder, IDS).calls
    second = decoder.run_layers(first, calls, [2]) @ patches[1][1]
    expected = ((first - streams[2]).square().mean() + (second - streams[4]).square().mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    loss.backward()
    assert all(patch.moved["matrix"].grad.abs().sum() > 0 for patch in modules_of(student))


def test_stream_mse_is_the_relative_error_of_every_stream_behind_the_first_gap():
    decoder = decoder_of(tiny_model().double())
    student, patches = student_of(decoder, (1, 3))
    training = StreamMSE()
    assert training.streams(student) == {2, 4, 5, 6}
    loss = training.loss(student, Online(training, student, IDS).lesson([0, 1]))
    dense = record(decoder, IDS)
    found = {2: dense.streams[1] @ patches[0][1]}
    found[4] = decoder.run_layers(found[2], dense.calls, [2]) @ patches[1][1]
    found[5] = decoder.run_layers(found[4], dense.calls, [4])
    found[6] = decoder.run_layers(found[5], dense.calls, [5])
    errors = [
        ((stream - dense.streams[reader]).norm(dim=-1) / dense.streams[reader].norm(dim=-1)).square().mean()
        for reader, stream in found.items()
    ]
    assert loss.item() == pytest.approx(sum(errors).item() / 4, rel=1e-9)
    loss.backward()
    assert all(patch.moved["matrix"].grad.abs().sum() > 0 for patch in modules_of(student))


def test_no_logits_of_a_whole_sequence_exist(monkeypatch):
    """Neither side's: the head is called on a few tokens at a time, and never for the student."""
    from linearpatch.models import loss as losses

    decoder = decoder_of(tiny_model())
    monkeypatch.setitem(losses.LOGIT_BYTES, "cpu", 1)  # 16 tokens, the least
    seen = []
    decoder.head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    ids = torch.randint(3, 300, (2, 64))
    training = OutputKL(top_k=10)
    student = Runner(decoder, edit_of([2], [(on_stream(2, 3), FullPatch(torch.eye(SIZE), None, around_start=True))]))
    lesson = Online(training, student, ids).lesson([0, 1])
    assert sum(seen) == ids.numel()
    assert max(seen) == 16
    training.loss(student, lesson).backward()
    assert sum(seen) == ids.numel()


def test_chunks_change_nothing(monkeypatch):
    from linearpatch.distillation import top_k

    decoder = decoder_of(tiny_model().double())
    normed = torch.randn(2, 40, SIZE, dtype=torch.float64)
    targets = top_k_targets(decoder, torch.randn(2, 40, SIZE, dtype=torch.float64), 12, 1.0)
    found = []
    for budget in (1, 2**20):
        monkeypatch.setitem(top_k.GATHER_BYTES, "cpu", budget)
        leaf = normed.clone().requires_grad_()
        loss = top_k_kl(decoder, leaf, targets, 1.0)
        found.append((loss.item(), torch.autograd.grad(3 * loss, leaf)[0]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-12)


def test_targets_are_small_and_sorted_out_by_the_teacher():
    decoder = decoder_of(tiny_model())
    normed = torch.randn(2, 5, SIZE)
    targets = top_k_targets(decoder, normed, 7, 1.0)
    assert (targets.probabilities.dtype, targets.indices.dtype) == (torch.float16, torch.int32)
    logits = decoder.logits(normed)
    for row in range(2):
        for token in range(5):
            expected = logits[row, token].sort(descending=True)
            assert set(targets.indices[row, token].tolist()) == set(expected.indices[:7].tolist())
    assert torch.allclose(targets.probabilities.float().sum(-1), torch.ones(2, 5), atol=2e-3)


@pytest.mark.parametrize(("size", "k"), [(4096, 5), (4096, 32), (4096, 33), (4100, 5), (64, 64)])
def test_the_search_in_groups_finds_the_largest(size, k):
    logits = torch.randn(7, size, generator=torch.Generator().manual_seed(0))
    values, indices = largest(logits, k)
    assert torch.equal(values, logits.gather(1, indices))
    assert torch.equal(values.sort(descending=True).values, logits.topk(k).values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_a_student_equal_to_its_teacher_has_no_loss():
    decoder = decoder_of(tiny_model())
    normed = torch.randn(1, 9, SIZE)
    targets = top_k_targets(decoder, normed, 50, 1.0)
    assert top_k_kl(decoder, normed, targets, 1.0).item() == pytest.approx(0, abs=1e-5)
    worse = top_k_kl(decoder, normed + torch.randn_like(normed), targets, 1.0).item()
    assert worse > 1e-3


def test_gradients_go_through_a_leaf_only_once():
    """Without a graph the loss is a plain number, as in validation."""
    decoder = decoder_of(tiny_model())
    normed = torch.randn(1, 9, SIZE)
    targets = top_k_targets(decoder, normed, 5, 1.0)
    assert not top_k_kl(decoder, normed, targets, 1.0).requires_grad
    leaf = normed.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: top_k_kl(decoder_of(DOUBLE), x, TopK(targets.probabilities, targets.indices), 1.0),
        (leaf.double().detach().requires_grad_(),),
    )


DOUBLE = tiny_model().double()


@pytest.mark.parametrize(("kind", "mixture"), [("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.2)])
@pytest.mark.parametrize("loss", [OutputKL(top_k=20, temperature=1.5), FullKL(temperature=1.5)], ids=["top-K", "full"])
def test_other_divergences_are_the_plain_ones(loss, kind, mixture):
    decoder = in_fp64("llama")
    training, removed = replace(loss, divergence=kind, mixture=mixture), (2, 3)
    student, patches = student_of(decoder, removed)
    found = training.loss(student, Online(training, student, IDS).lesson([0, 1]))
    found.backward()
    view, (weight,) = whole_view(decoder, removed, patches)
    with torch.no_grad():
        taught = decoder.model(input_ids=IDS, use_cache=False).logits
    logits = view(input_ids=IDS, use_cache=False).logits
    if isinstance(loss, OutputKL):
        likeliest = taught.topk(20, dim=-1)
        taught, logits = likeliest.values, logits.gather(-1, likeliest.indices)
    p, q = (taught / 1.5).softmax(dim=-1), (logits / 1.5).softmax(dim=-1)
    if isinstance(loss, OutputKL):
        p = p.half().double() / p.half().double().sum(dim=-1, keepdim=True)
        p = p.clamp(min=2.0**-24)
    m = mixture * p + (1 - mixture) * q
    of_p, of_q = (one * (one / m).log() for one in (p, q))
    apart = q * (q / p).log() if kind == "reverse" else mixture * of_p + (1 - mixture) * of_q
    expected = 1.5**2 * apart.sum(dim=-1).mean()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    gradient = modules_of(student)[0].moved["matrix"].grad
    assert torch.allclose(gradient, weight.grad.T, atol=1e-9 * weight.grad.abs().max())


def test_a_token_that_fp16_knows_as_impossible_gives_no_infinite_divergence():
    decoder = decoder_of(tiny_model())
    normed = torch.randn(1, 9, SIZE)
    targets = top_k_targets(decoder, normed, 5, 0.01)
    assert (targets.probabilities == 0).any()
    for kind in ("forward", "reverse", "jsd"):
        leaf = normed.clone().requires_grad_()
        loss = top_k_kl(decoder, leaf, targets, 1.0, kind)
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, leaf)[0]).all()


def test_k_is_at_most_the_vocabulary():
    decoder = decoder_of(tiny_model())
    OutputKL(top_k=300).check(decoder)
    with pytest.raises(ConfigError, match=r"top_k is 301.*300 tokens"):
        OutputKL(top_k=301).check(decoder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 1}, "top_k"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"divergence": "backward"}, "Allowed: forward, jsd, reverse"),
        ({"divergence": "jsd", "mixture": 1.0}, "mixture is 1.0"),
        ({"targets": "offline"}, "Allowed: cached, online"),
        ({"keep_states": True}, "targets=cached"),
        ({"patch_form": "lowrank"}, "low_rank"),
        ({"trainable": "head"}, "Allowed: all, last_layers, lora"),
        ({"trainable": "diagonal"}, "Use distill.patch_form=diagonal"),
        ({"patch_form": "low_rank", "decay_toward": "zero"}, "initial patch is fixed"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_grad_norm": 0.0}, "null for none"),
    ],
)
def test_impossible_settings_are_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        OutputKL(**settings)


def test_lessons_hold_what_the_student_needs():
    decoder = decoder_of(tiny_model())
    training = OutputKL(top_k=5)
    student, _ = student_of(decoder, (2, 3))
    lesson = Online(training, student, IDS).lesson([1])
    assert isinstance(lesson, Lesson)
    assert torch.equal(lesson.stream, record(decoder, IDS[1:]).streams[2])
    assert lesson.targets["indices"].shape == (1, 12, 5)
    assert functional.softmax(lesson.targets["probabilities"].float(), -1).isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj", "granite"])
def test_the_language_modelling_loss_is_that_of_the_whole_model(family):
    decoder = in_fp64(family)
    training = LanguageModel()
    student, patches = student_of(decoder, (2, 3))
    lesson = Online(training, student, IDS).lesson([0, 1])
    assert lesson.targets == {}
    loss = training.loss(student, lesson)
    loss.backward()
    view, (weight,) = whole_view(decoder, (2, 3), patches)
    expected = view(input_ids=IDS, labels=IDS, use_cache=False).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (patch,) = modules_of(student)
    assert torch.allclose(patch.moved["matrix"].grad, weight.grad.T, atol=1e-6 * weight.grad.abs().max())
    with pytest.raises(ConfigError, match="no dense model scores what the student writes"):
        replace(training, on_policy=0.5)
