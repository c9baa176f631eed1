"""The files of a drafter's adapter, a stock PEFT folder: names alone, no Megatron."""

FOLDER, CONFIG, WEIGHTS = "linear_spec_lora", "adapter_config.json", "adapter_model.safetensors"


def lora_names(layer: int) -> tuple[str, str]:
    """PEFT's names of LoRA's A [r, H * D] and B [E, r] on a layer's o_proj."""
    here = f"base_model.model.encoder.layers.{layer}.self_attn.o_proj"
    return f"{here}.lora_A.weight", f"{here}.lora_B.weight"
