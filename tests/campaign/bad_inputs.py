"""Inputs that are wrong, of every kind that people and disks produce: none may be accepted or end in a traceback.

Each is a command line, with what must lie in the working folder and in the environment before. Most are made from a
few lists: of settings and of values that none of them takes, of files and of what they may hold instead.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from bad_files import checkpoints, model_folders, records, texts
from bad_input import LONG, Bad, Good, file, run

NOT_WHOLE = ("abc", "1.5", "-1", "[1]", "{a:1}", "nan", "inf", "true", "1e400", "''")


NOT_A_NUMBER = ("abc", "-1", "[1]", "{a:1}", "nan", "inf", "true", "''")


WHOLE = {
    "num_pruned_layers": ("0", "4", "50", "99999999999999999999"), "seed": ("9223372036854775808", "1" + "0" * 60),
    "calibration.num_blocks": ("0", "100000000"), "calibration.block_length": ("0", "1", "99999999"),
    "calibration.batch_size": ("0",), "eval.ppl.seq_len": ("0", "1", "99999999"), "eval.ppl.batch_size": ("0",),
    "pruner.protect_first": ("5", "100"), "model.seed": ("1" + "0" * 40,),
}  # fmt: skip


NUMBERS = {
    "patch.ridge": ("patch=lstsq",), "patch.gain": ("patch=lstsq", "patch.bias=true"),
    "distill.learning_rate": ("distill=output_kl",), "distill.weight_decay": ("distill=output_kl",),
    "distill.max_grad_norm": ("distill=output_kl",), "distill.final_learning_rate": ("distill=output_kl",),
}  # fmt: skip


WORDS = {
    "model.dtype": (), "model.device": (), "calibration.sampling": (), "calibration.bos": (), "save_format": (),
    "gguf_type": (),
    "missing_data": (), "patch.sites": (), "patch.estimator": (), "patch.form": ("patch=lstsq",),
    "patch.weighting": ("patch=lstsq",), "patch.features": ("patch=lstsq",), "distill.trainable": ("distill=full_kl",),
    "distill.patch_form": ("distill=full_kl",), "distill.divergence": ("distill=full_kl",),
    "distill.side": ("distill=full_kl",),
    "distill.basis": ("distill=full_kl",), "eval.ppl.bos": (), "tracker.wandb.mode": ("tracker=wandb",), "stages": (),
    "model.family": (),
}  # fmt: skip


GROUPS = ("model", "corpus", "pruner", "patch", "distill", "eval", "tracker", "calibration", "experiment", "scale")


def values() -> Iterator[Bad]:
    """Settings with values that they don't take."""
    for key, more in WHOLE.items():
        wrong = NOT_WHOLE if "." in key or key == "seed" else NOT_WHOLE[:6]
        yield from (run("values", f"{key}={value}") for value in (*wrong, *more))
    for key, needs in NUMBERS.items():
        yield from (run("values", *needs, f"{key}={value}") for value in NOT_A_NUMBER)
    for key, needs in WORDS.items():
        yield from (run("values", *needs, f"{key}={value}") for value in ("nonsense", "[]", "3", "''"))
    for device in ("meta", "cuda:99", "cpu:3", "xla", "fpga", "cuda:-1", "-1"):
        yield run("values", f"model.device={device}")
    for group in GROUPS:
        yield from (run("choices", f"{group}={value}") for value in (f"{group}x", "../../etc/passwd", LONG, ""))
        if group not in ("eval", "tracker"):
            yield run("choices", f"{group}=[a,b]")


def syntax() -> Iterator[Bad]:
    """Words that are no settings."""
    for word in (
        "=", "=1", "pruner", "pruner=sleb=x", "'", "pruner={", "a b=c d", "$=1", "seed=${nope}", "seed=${oc.env:NOPE}",
        "seed=???", "seed=${", "🙂=1", "foo=1",
        "+foo=1", "++foo=1", "patch.foo=1", "~patch", "~seed", "patch.foo.bar=1",
        "eval.ppl.foo=1", "++seed.foo=1", "pruner@foo=sleb", "+pruner=sleb", "hydra.run.dir=[", "--nonsense",
        "seed=1 2",
        "output_dir=", "sweep=", "sweep=x.yaml", "eval=[ppl,ppll]", "eval=[", "eval=ppl]", "tasks=[a", "seed=\t'",
    ):  # fmt: skip
        yield run("syntax", word)
    yield run("syntax", "-m", "--cfg", "job")
    yield run("syntax", "-m", "output_dir=a,b", "--dry-run")
    yield run("syntax", "-m", "pruner=sleb,slebb", "--dry-run")
    yield run("syntax", "-m", "num_pruned_layers=1,50", "--dry-run")
    yield run("syntax", "-m", "hydra/launcher=nonsense", "--dry-run")
    yield run("syntax", "-m", "seed=range(0,1", "--dry-run")


def combinations() -> Iterator[Bad]:
    """Settings that are right one by one."""
    for words in (
        ("patch=lstsq", "patch.form=low_rank", "patch.rank=33"), ("patch=lstsq", "patch.rank=0"),
        ("patch=mlp", "patch.width=0"), ("patch=normed_refit", "patch.epsilon=-1"),
        ("patch=lstsq", "save_model=true", "save_format=nemotron_nas"), ("patch=lstsq", "patch.gain=2"),
        ("patch=lstsq", "patch.form=diagonal_plus_low_rank",
         "patch.features=rms_normalised"),
        ("patch=lstsq", "patch.ridge=auto", "calibration.held_out_blocks=0"),
        ("patch=none", "distill=output_kl"), ("stages=[distilled]",), ("distill=output_kl", "stages=[dense]"),
        ("distill=output_kl", "distill.patch_form=low_rank", "distill.rank=33"),
        ("distill=output_kl", "distill.patch_form=low_rank", "distill.decay_toward=zero"),
        ("distill=output_kl", "patch=refit", "distill.patch_form=diagonal"), ("distill=output_kl", "distill.top_k=0"),
        ("push_to_hub=me/x",), ("push_to_hub=not a name", "save_model=true"), ("pruner=explicit",),
        ("pruner=explicit", "pruner.layers=[1]"), ("pruner=explicit", "pruner.layers=[1,1]"),
        ("pruner=explicit", "pruner.layers=[1,9]"), ("pruner=explicit", "pruner.layers=[-1,2]"),
        ("pruner=explicit", "pruner.layers=[a,b]"), ("pruner=explicit", "pruner.layers=[1,2]", "pruner.iterative=true"),
        ("pruner=explicit", "pruner.layers=[0,1]", "patch=refit"), ("pruner=tail", "pruner.protect_last=2",
        "patch=refit"),
        ("pruner=explicit", "pruner.layers=[0,2]", "patch=mlp_lstsq"),
        ("pruner=explicit", "pruner.layers=[1,0]", "patch=mlp_refit"), ("pruner.protect_first=2",
        "pruner.protect_last=2"),
        ("save_model=true", "save_format=plain", "patch=rotate"),
        ("patch=refit", "patch.sites=one_per_layer"), ("corpus.evaluation=train", "corpus.calibration=train"),
        ("calibration.corpus=pydoc",), ("corpus=mixture",), ("calibration.sampling=windows",
        "calibration.num_blocks=null"),
        ("eval=[tasks]",), ("eval=[tasks]", "tasks=[no_such_task]"), ("eval=[qa]", "eval.qa.limit=0"),
        ("eval=[ppl,ppl_pydoc]", "corpus=pydoc", "eval.ppl_pydoc.seq_len=2"), ("model=hub",), ("corpus=text",),
        ("group=a/b",), ("group=" + LONG,), ("model.name=" + LONG,), ("patch=mlp_lstsq", "model.family=gemma3_text"),
    ):  # fmt: skip
        yield run("combinations", *words)
        if words[0] in ("pruner=explicit", "pruner=tail") or "patch.rank=33" in words or "corpus=text" in words:
            yield run("dry runs", *words, "--dry-run")
    for words in (
        ("num_pruned_layers=50",), ("calibration.num_blocks=100000000",), ("eval.ppl.seq_len=99999999",),
        ("model.family=lama",), ("model.settings.num_hidden_layers=-1",), ("corpus=text", "corpus.path=missing.txt"),
        ("distill=output_kl", "distillation.num_blocks=3", "distillation.block_length=99999999"),
        ("datasets_dir=missing",), ("model=hub", "model.path=./missing"), ("model.device=meta",),
    ):  # fmt: skip
        yield run("dry runs", *words, "--dry-run")


def random_models() -> Iterator[Bad]:
    """Sizes that don't fit each other."""
    for setting in (
        "num_attention_heads=3", "num_attention_heads=0", "num_attention_heads=-4", "num_attention_heads=abc",
        "num_key_value_heads=3", "num_key_value_heads=0", "hidden_size=-32", "hidden_size=0", "hidden_size=33",
        "vocab_size=10", "vocab_size=-1", "vocab_size=abc", "num_hidden_layers=0", "num_hidden_layers=1",
        "num_hidden_layers=-1", "num_hidden_layers=abc", "num_hidden_layers=null", "intermediate_size=-1",
        "intermediate_size=abc", "hidden_act=nonsense", "rms_norm_eps=abc", "head_dim=-1", "head_dim=7",
        "max_position_embeddings=-5", "rope_parameters=3", "pad_token_id=99999", "hidden_size=[1]",
    ):  # fmt: skip
        yield run("random models", f"++model.settings.{setting}")
    for family in ("lama", "t5", "bert", "vit", "whisper", "clip", LONG, "../x", "llama "):
        yield run("random models", f"model.family='{family}'")


def paths() -> Iterator[Bad]:
    """Places that aren't what they should be."""
    for key, needs in {
        "corpus.path": ("corpus=text",), "output_dir": (), "datasets_dir": (), "cache_dir": (),
        "model.path": ("model=hub",),
    }.items():  # fmt: skip
        for value in (LONG, "/".join(["y" * 200] * 30), f"a/{LONG}/b", "~" + LONG):
            yield run("paths", *needs, f"{key}={value}", name=f"{key}={value[:20]}")
    for key in ("output_dir", "cache_dir"):
        yield run("paths", f"{key}=a_file", make=file("a_file", "mine"))
        yield run("paths", f"{key}=a_file/below", make=file("a_file", "mine"))
        yield run("paths", f"{key}=/proc/nothing")
    yield run("paths", "datasets_dir=missing")
    yield run("paths", "datasets_dir=a_file", make=file("a_file", "mine"))
    for path in ("./missing", "/nonexistent", "a_file", "~nobody/x", "./a_file"):
        yield run("paths", "model=hub", f"model.path={path}", make=file("a_file", "mine"))
    yield run("paths", "--config-dir", "missing")


SWEEPS: Mapping[str, str | bytes] = {
    "empty": "", "null": "null", "word": "abc", "number": "3", "mapping": "pruner: sleb", "list of words": "[a, b]",
    "list of nothing": "[]", "empty combination": "- {}", "broken": "- {pruner: [sleb",
    "tabs": "-\tpruner: sleb\n\t- x",
    "binary": bytes(range(256)), "latin-1": "- {group: tëxt}".encode("latin-1"), "itself": "&a [*a]",
    "itself within": "- &a {pruner: *a}", "itself in a list": "- {stages: &a [*a]}", "deep": "- {stages: " + "[" * 3000,
    "deep but whole": "- {stages: " + "[" * 300 + "]" * 300 + "}",
    "deep mapping": "- " + "{a: " * 300 + "1" + "}" * 300,
    "laughs": "- &a {k: [x, x, x, x, x, x, x, x, x]}\n" + "".join(
        f"- &{c} {{k: [{', '.join('*' + b for _ in range(9))}]}}\n" for b, c in zip("abcdefgh", "bcdefghi",
        strict=True)),
    "bytes": "- {group: !!binary aGVsbG8=}",
    "a set": "- {stages: !!set {dense, pruned}}", "an object": "- !!python/object/apply:os.system [echo]",
    "a number for a key": "- {3: sleb}", "null for a key": "- {null: sleb}", "a list for a key": "- {? [a, b] : sleb}",
    "no such key": "- {prunner: sleb}", "no such choice": "- {pruner: slebb}",
    "two documents": "- {seed: 1}\n---\n- {seed: 2}",
    "a value that can't be": "- {pruner.protect_first: -1}", "a list for a choice": "- {pruner: [sleb, shortgpt]}",
    "a control character": '- {group: "a\\u0001b"}',
    "infinite": "- {pruner.protect_first: .inf}", "NaN": "- {seed: .nan}",
    "a huge number": "- {seed: " + "9" * 5000 + "}", "a long word": "- {group: " + "g" * 5000 + "}",
}  # fmt: skip


def sweeps() -> Iterator[Bad]:
    """Files of combinations."""
    for name, content in SWEEPS.items():
        yield run("sweep files", "-m", "sweep=s.yaml", "--dry-run", make=file("s.yaml", content), name=name)
    yield run("sweep files", "-m", "sweep=folder", "--dry-run", make=lambda good: Path("folder").mkdir(), name="folder")
    yield run("sweep files", "-m", f"sweep={LONG}", "--dry-run", name="a long name")


def environments() -> Iterator[Bad]:
    """Variables."""
    launched = {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2"}
    for variable, value in (
        ("WORLD_SIZE", "abc"), ("WORLD_SIZE", "-1"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "1.5"), ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "4"), ("WORLD_SIZE", "9" * 50), ("WORLD_SIZE", "²"), ("LINEARPATCH_CACHE", LONG),
        ("LINEARPATCH_CACHE", "a_file"), ("LINEARPATCH_CACHE", "a_file/x"), ("LINEARPATCH_DATASETS", "missing"),
        ("LINEARPATCH_DATASETS", "a_file"), ("LINEARPATCH_DATASETS", LONG),
    ):  # fmt: skip
        yield run("environment", name=f"{variable}={value}", make=file("a_file", "mine"), environment={variable: value})
    for variable, value in (
        ("RANK", "abc"),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("MASTER_PORT", "abc"),
        ("LOCAL_RANK", "abc"),
    ):
        yield run("environment", name=f"launched, {variable}={value}", environment={**launched, variable: value})


def commands() -> Iterator[Bad]:
    """Words of the other commands."""
    for words in (
        (), ("nonsense",), ("generate",), ("generate", "x"), ("generate", "missing", "hello"), ("generate", "c", ""),
        ("generate", "c", "hello", "--max-new-tokens", "0"), ("generate", "c", "hello", "--max-new-tokens", "x"),
        ("generate", "c", "hello", "--temperature", "-1"), ("generate", "c", "hello", "--temperature", "nan"),
        ("generate", "c", "hello", "--top-p", "2"), ("generate", "c", "hello", "--top-p", "0.5"),
        ("generate", "c", "hello", "--num-beams", "0"), ("generate", "c", "hello", "--seed", "-1"),
        ("generate", "c", "hello", "--seed", "99999999999999999999"), ("generate", "c", "hello", "--dtype", "float31"),
        ("generate", "c", "hello", "--device", "meta"), ("generate", "c", "hello", "--device", "cuda:99"),
        ("generate", "c", "hello", "--base", "random"), ("generate", LONG, "hello"), ("list", "nonsense"), ("list",
        "../x"),
        ("report",), ("report", "missing"), ("report", "empty"), ("report", LONG), ("report", "a_file"),
        ("report", "c", "--output", "a_file"), ("report", "c", "--published", "missing.csv"),
        ("report", "c", "--published", "a_file"), ("report", "c", "--nonsense"), ("report", "c", "--output", LONG),
        ("status",), ("status", "missing", "--once"), ("status", "empty", "--once"), ("status", LONG, "--once"),
        ("status", "a_file", "--once"), ("cache",), ("cache", "nonsense"), ("cache", "rm"), ("cache", "rm", "nonsense"),
        ("cache", "rm", "all", "--older-than", "-1"), ("cache", "rm", "all", "--older-than", "x"),
        ("cache", "rm", "all", "--older-than", "nan"), ("cache", "ls", "--nonsense"), ("bench",), ("bench", "nonsense"),
    ):  # fmt: skip

        def make(good: Good) -> None:
            shutil.copytree(good.run, "c")
            Path("empty").mkdir()
            Path("a_file").write_text("mine")

        yield Bad("commands", " ".join(words), words, make)


def tasks() -> Iterator[Bad]:
    """Tasks of lm_eval whose definitions don't fit their questions."""
    rows = '{"q": "a", "choices": ["x", "y"], "gold": 0}\n{"q": "b", "choices": ["x", "y", "z"], "gold": 1}\n'
    choices = 'doc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
    for name, body in {
        "brier_score": choices + "metric_list: [{metric: brier_score}]",
        "no such column": choices.replace("{{q}}", "{{nope.nope}}") + "metric_list: [{metric: acc}]",
        "no such metric": choices + "metric_list: [{metric: nonsense}]",
        "broken template": choices.replace("{{q}}", "{{q") + "metric_list: [{metric: acc}]",
        "target out of range": choices.replace("target: gold", "target: 9") + "metric_list: [{metric: acc}]",
    }.items():

        def make(good: Good, body: str = body) -> None:
            Path("t").mkdir()
            Path("t/rows.jsonl").write_text(rows)
            data = f"dataset_kwargs: {{data_files: {{test: {Path.cwd()}/t/rows.jsonl}}}}"
            head = f"task: mine\ndataset_path: json\n{data}\noutput_type: multiple_choice\ntest_split: test\n"
            Path("t/mine.yaml").write_text(head + body)

        yield run("tasks", "eval=[tasks]", "tasks=[mine]", "eval.tasks.include_path=t", make=make, name=name)


def everything() -> list[Bad]:
    """All of them, each once."""
    kinds = (
        values, syntax, combinations, random_models, paths, texts, sweeps, environments, model_folders, checkpoints,
        records, commands, tasks,
    )  # fmt: skip
    found: dict[tuple[str, str], Bad] = {}
    for kind in kinds:
        for bad in kind():
            found.setdefault((bad.kind, bad.name), bad)
    return list(found.values())
