"""The tokenizer files of an export: copied, and made to end a sequence with the token that config.json names."""

from pathlib import Path

from nld_train.convert.hf_folder import copy_tokenizer_files
from nld_train.data.tokenizer import CONFIG, config_token, load_tokenizer
from nld_train.errors import UserError
from nld_train.json_file import read_json_object, write_json_object

SPECIAL_TOKENS = "special_tokens_map.json"
ALLOWED = "a Hugging Face tokenizer folder"


def export_tokenizer(source: Path, target: Path, eos_token_id: int) -> None:
    """Copy the tokenizer files of `source` into `target`, with the token of `eos_token_id` as their eos_token.

    Tools that read no config.json stop where the tokenizer says. A file that names the token already is copied as it
    is. Raises: UserError for a file that is missing or broken, and for an id that the vocabulary lacks.
    """
    copy_tokenizer_files(source, target)
    eos = load_tokenizer(source).library.id_to_token(eos_token_id)
    if eos is None:
        raise UserError(f"eos_token_id={eos_token_id}", f"the ids of {source}", "give the tokenizer of this model")
    for name in (CONFIG, SPECIAL_TOKENS):
        if (target / name).is_file():
            content = read_json_object(target / name, ALLOWED)
            if config_token(content, "eos_token") != eos:
                write_json_object(target / name, content | {"eos_token": eos})
