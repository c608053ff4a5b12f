"""Change the files of a checkpoint, with and without a manifest that agrees."""

import json

from linearpatch.checkpoint.manifest import _digest, hash_files


def edit_manifest(folder, *, signed=False, **changes):
    manifest = folder / "pruning.json"
    content = json.loads(manifest.read_text()) | changes
    if signed:
        del content["sha256"]
        content["sha256"] = _digest(content)
    manifest.write_text(json.dumps(content))


def weights_of(folder):
    return next(folder.glob("*.safetensors"))


def resign(folder, **changes):
    """A manifest that agrees with itself and with the files that are there."""
    edit_manifest(folder, signed=True, files=hash_files(folder), **changes)


def edit_config(folder, **changes):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
