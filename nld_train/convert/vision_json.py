"""The vision part of config.json, and the processor files beside it: written as transformers wants them, and read back.

The tower is transformers' PixtralVisionModel, the projector its Mistral3MultiModalProjector, and what makes pixels and
tokens of images its PixtralProcessor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from nld_train.data.tokenizer import TextTokenizer, load_tokenizer
from nld_train.errors import UserError, require
from nld_train.fields import from_tree
from nld_train.json_file import read_json_object, write_json_object
from nld_train.vision_config import (
    FIXED_PROJECTOR,
    FIXED_TOWER,
    IMAGE_NAMES,
    TOWER_KEYS,
    VisionActivation,
    VisionConfig,
    pixtral_settings,
    projector_settings,
)

PROCESSOR, IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"
ALLOWED = "what PixtralProcessor reads"
# VisionConfig's ids in the words of our config.json, and what PixtralProcessor calls their tokens by default.
TOKEN_KEYS = {
    "image_token_id": ("image_token", IMAGE_NAMES[0]),
    "break_token_id": ("image_break_token", IMAGE_NAMES[1]),
    "end_token_id": ("image_end_token", IMAGE_NAMES[2]),
}
# What is not computed otherwise, as are FIXED_TOWER and FIXED_PROJECTOR: files may name it only with these values.
FIXED_PIXELS: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "rescale_factor": 1 / 255,
    "resample": 3,  # bicubic
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
}
# Turns contents of parts into texts, with one image token for an image, which the processor then writes out.
CONTENT_PARTS = """\
{%- set read = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- set content = message['content'] -%}
    {%- if content is defined and content is sequence and content is not string and content is not mapping -%}
        {%- set text = namespace(so_far='') -%}
        {%- for part in content -%}
            {%- set text.so_far = text.so_far + ('IMAGE' if part['type'] == 'image' else part['text']) -%}
        {%- endfor -%}
        {%- set read.messages = read.messages + [dict(message, content=text.so_far)] -%}
    {%- else -%}
        {%- set read.messages = read.messages + [message] -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = read.messages -%}
"""


def vision_entries(vision: VisionConfig) -> dict[str, Any]:
    """What config.json holds of a vision tower, beside the language model's shape."""
    return {
        "vision_config": pixtral_settings(vision),
        **projector_settings(vision),
        **{f"{key}_id": getattr(vision, name) for name, (key, _) in TOKEN_KEYS.items()},
    }


def read_vision_entries(folder: Path, content: Mapping[str, Any]) -> VisionConfig:
    """The vision tower that a folder's config.json describes. Ids that it does not name are those of the tokens that
    the folder's processor names.

    Raises: UserError for missing numbers, and for what VisionConfig has no place for.
    """
    path = folder / "config.json"
    tower = content.get("vision_config")
    if not isinstance(tower, dict):
        raise UserError(
            f"{path} without vision_config", "an object that describes the tower", "import it with --text-only"
        )
    rope = {"rope_theta": tower.get("rope_theta"), "rope_type": "default"} | (tower.get("rope_parameters") or {})
    missing = [f"vision_config.{key}" for key in TOWER_KEYS.values() if tower.get(key) is None]
    missing += ["vision_config.rope_parameters.rope_theta"] if rope["rope_theta"] is None else []
    missing += ["spatial_merge_size"] if content.get("spatial_merge_size") is None else []
    require(not missing, f"{path} without {', '.join(missing)}", "all of the tower's numbers", "complete the file")
    acts = get_args(VisionActivation)
    got, allowed = f"{path}: vision_config.hidden_act={tower['hidden_act']!r}", " or ".join(acts)
    require(tower["hidden_act"] in acts, got, allowed, "use a tower with one of them, or --text-only")
    check_fixed(path, tower, FIXED_TOWER, "vision_config.")
    check_fixed(path, content, FIXED_PROJECTOR)
    check_fixed(path, rope, {"rope_type": "default"}, "vision_config.rope_parameters.")
    values = {name: tower[key] for name, key in TOWER_KEYS.items()}
    values |= {"merge": content["spatial_merge_size"], "theta": rope["rope_theta"], **read_token_ids(folder, content)}
    vision = from_tree(VisionConfig, values | {"train_tower": True, "recompute": False}, f"{path}: vision_config: ")
    head = tower.get("head_dim", vision.hidden // vision.heads)
    require(
        head == vision.hidden // vision.heads,
        f"{path}: vision_config.head_dim={head}",
        f"{vision.hidden // vision.heads}, which is hidden_size / num_attention_heads",
        "use a tower of Pixtral's kind",
    )
    check_image_processor(folder, vision)
    return vision


def check_fixed(path: Path, said: Mapping[str, Any], fixed: Mapping[str, Any], prefix: str = "") -> None:
    """Raises: UserError where a file says something else of what is not computed otherwise."""
    for key, computed in fixed.items():
        found = said.get(key, computed)
        require(
            found == computed,
            f"{path}: {prefix}{key}={found!r}",
            f"{computed!r}: nothing else is computed",
            "use a model of this family, or import its text alone with --text-only",
        )


def read_token_ids(folder: Path, content: Mapping[str, Any]) -> dict[str, int]:
    """VisionConfig's three ids: those that config.json names, the others by the names of the folder's processor."""
    said = {"image_token_id": content.get("image_token_index", content.get("image_token_id"))}
    said |= {name: content.get(f"{key}_id") for name, (key, _) in TOKEN_KEYS.items() if name not in said}
    if None not in said.values():
        return {name: token_id for name, token_id in said.items() if token_id is not None}
    processor = read_json_object(folder / PROCESSOR, ALLOWED) if (folder / PROCESSOR).is_file() else {}
    names = {name: processor.get(key, usual) for name, (key, usual) in TOKEN_KEYS.items()}
    found = named_image_tokens(load_tokenizer(folder), list(names.values()))
    return {name: by_name if said[name] is None else said[name] for name, by_name in zip(said, found, strict=True)}


def named_image_tokens(tokenizer: TextTokenizer, names: list[str]) -> list[int]:
    """The ids of the tokens of cells, breaks and ends. Raises: UserError where the tokenizer has no control token of
    one of the names."""
    controls = {name: number for number, name in tokenizer.control_tokens().items()}
    unknown = [name for name in names if name not in controls]
    if unknown:
        spare = [name for name in controls if name.startswith("<SPECIAL_")]
        offer = f"{spare[0]} to {spare[-1]}" if spare else "none"
        raise UserError(
            f"{tokenizer.folder} has no control token {', '.join(map(str, unknown))}",
            f"control tokens of this tokenizer; it has {len(spare)} reserved ones, {offer}",
            "name three of them: --image-tokens of `nld convert merge-vision`, or processor_config.json of an import",
        )
    return [controls[name] for name in names]


def check_image_processor(folder: Path, vision: VisionConfig) -> None:
    """Refuse a folder whose processor makes other pixels or tokens than training does. Raises: UserError."""
    for path, said in image_processor_settings(folder):
        check_fixed(path, said, FIXED_PIXELS)
        edge = {"longest_edge": vision.longest_edge}
        size = said.get("size", edge)
        require(size == edge, f"{path}: size={size}", f"{edge}, as image_size of vision_config", "make the two agree")
    if (folder / PROCESSOR).is_file():
        sizes = {"patch_size": vision.patch_size, "spatial_merge_size": vision.merge}
        check_fixed(folder / PROCESSOR, read_json_object(folder / PROCESSOR, ALLOWED), sizes)


def image_processor_settings(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files of a folder that say how pixels are made, and what they say."""
    found = []
    if (folder / IMAGE_PROCESSOR).is_file():
        found.append((folder / IMAGE_PROCESSOR, read_json_object(folder / IMAGE_PROCESSOR, ALLOWED)))
    if (folder / PROCESSOR).is_file():
        nested = read_json_object(folder / PROCESSOR, ALLOWED).get("image_processor")
        found += [(folder / PROCESSOR, nested)] if isinstance(nested, dict) else []
    return found


def image_token_names(vision: VisionConfig, tokenizer: TextTokenizer) -> dict[str, str]:
    """The three tokens by the keys of PixtralProcessor. Raises: UserError for an id without a control token."""
    controls, names = tokenizer.control_tokens(), {}
    for name, (key, _) in TOKEN_KEYS.items():
        token_id = getattr(vision, name)
        require(
            token_id in controls,
            f"vision.{name}={token_id} with {tokenizer.folder}",
            "ids of control tokens",
            "give the tokenizer that the model was trained with",
        )
        names[key] = controls[token_id]
    return names


def image_template(vision: VisionConfig, tokenizer: TextTokenizer, template: str) -> str:
    """A chat template that also takes contents of parts, images and texts in their order, before the template itself.

    Raises: UserError for an id without a control token.
    """
    parts = CONTENT_PARTS.replace("IMAGE", image_token_names(vision, tokenizer)["image_token"])
    return template if template.startswith(parts) else parts + template


def write_processor_files(vision: VisionConfig, tokenizer: TextTokenizer, target: Path) -> None:
    """Write what AutoProcessor reads into an export. Raises: UserError for an id without a control token."""
    names = image_token_names(vision, tokenizer)
    sizes = {"patch_size": vision.patch_size, "spatial_merge_size": vision.merge}
    write_json_object(target / PROCESSOR, {"processor_class": "PixtralProcessor", **sizes, **names})
    write_json_object(
        target / IMAGE_PROCESSOR,
        {
            "image_processor_type": "PixtralImageProcessor",
            "processor_class": "PixtralProcessor",
            **FIXED_PIXELS,
            "patch_size": vision.patch_size,
            "size": {"longest_edge": vision.longest_edge},
        },
    )
