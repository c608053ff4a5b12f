"""Models that accelerate keeps partly on disk, beside the same in one piece."""

from conftest import NUM_LAYERS, tiny_model
from transformers import AutoModelForCausalLM


def dense(family, tmp_path, **overrides):
    """The model in one piece, with streams far above the norms' epsilon."""
    model = tiny_model(family, **overrides)
    model.get_input_embeddings().weight.data.mul_(10)
    model.save_pretrained(tmp_path / "dense")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "dense")


def on_disk(family, tmp_path, layers_on_disk=range(NUM_LAYERS), name="offload"):
    """The same model as `from_pretrained` gives it where memory is short."""
    layers = {"opt": "model.decoder.layers"}.get(family, "model.layers")
    norm = {"opt": "model.decoder.final_layer_norm"}.get(family, "model.norm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    device_map = {name: "cpu" for name, module in model.named_modules() if not list(module.children())}
    device_map = {name: place for name, place in device_map.items() if not name.startswith(f"{layers}.")}
    device_map |= {f"{layers}.{i}": "disk" if i in layers_on_disk else "cpu" for i in range(NUM_LAYERS)}
    device_map[norm] = "disk"
    return AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", device_map=device_map, offload_folder=tmp_path / name
    )
