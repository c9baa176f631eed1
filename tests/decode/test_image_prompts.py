"""Prompts with images in every mode of decoding: exports that are loaded, files that are read, laws of the modes."""

import pytest
import torch

from nld_train.decode.ar import generate_ar
from nld_train.decode.diffusion import generate_diffusion
from nld_train.decode.image_prompt import image_chat_prompts, load_image_processor, read_image_file
from nld_train.decode.load import load_model, load_text_tokenizer
from nld_train.decode.quadratic import generate_quadratic
from nld_train.decode.run import ImagePrompts
from nld_train.decode.self_speculation import generate_self_speculation
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from tests.convert.conftest import export, imported
from tests.vision_folder import IMAGE, image_tokens, random_images, write_picture

SETTINGS = DecodeConfig(max_new_tokens=16, block_length=4, threshold=0.5, eos_token_id=())
SIZES = [(2, 2), (1, 3), (3, 1), (2, 1), (1, 1), (3, 3), (1, 2), (2, 3)]


@pytest.fixture(scope="module")
def model(vision_export):
    return load_model(vision_export, torch.float64, torch.device("cpu"))


@pytest.fixture(scope="module")
def prompts() -> ImagePrompts:
    """Prompts of different lengths: two images before a text, one, or none."""
    generator = torch.Generator().manual_seed(0)
    ids, used = [], 0
    for number in range(8):
        images = SIZES[used : used + (2, 1, 0)[number % 3]]
        used += len(images)
        text = torch.randint(101, 400, (1 + number,), generator=generator).tolist()
        ids.append([token for size in images for token in image_tokens(*size)] + text)
    return ImagePrompts(ids, random_images(SIZES[:used]))


def alone(prompts: ImagePrompts, number: int) -> ImagePrompts:
    """One prompt with its own images."""
    counts = [ids.count(IMAGE) for ids in prompts.ids]
    cells = (prompts.images["image_sizes"] // 8).prod(1).cumsum(0).tolist()
    before, behind = sum(counts[:number]), sum(counts[: number + 1])
    own = [place for place, end in enumerate(cells) if before < end <= behind]
    images = {name: tensor[own] for name, tensor in prompts.images.items()} if own else {}
    return ImagePrompts([prompts.ids[number]], images)


@pytest.mark.parametrize("decode", [generate_self_speculation, generate_quadratic], ids=["linear", "quadratic"])
def test_greedy_self_speculation_is_ar_on_prompts_with_images(model, prompts, decode) -> None:
    expected = [answer.ids for answer in generate_ar(model, prompts, SETTINGS)]
    answers = decode(model, prompts, SETTINGS)
    assert [answer.ids for answer in answers] == expected
    blank = {**prompts.images, "pixel_values": torch.zeros_like(prompts.images["pixel_values"])}
    others = [answer.ids for answer in generate_ar(model, ImagePrompts(prompts.ids, blank), SETTINGS)]
    assert [one == other for one, other in zip(expected, others, strict=True)] == [
        IMAGE not in ids for ids in prompts.ids
    ]


@pytest.mark.parametrize(
    "decode", [generate_ar, generate_diffusion, generate_self_speculation, generate_quadratic]
)  # fmt: skip
def test_a_batch_with_images_is_its_prompts_one_by_one(model, prompts, decode) -> None:
    together = decode(model, prompts, SETTINGS)
    for number, answer in enumerate(together):
        single = decode(model, alone(prompts, number), SETTINGS)[0]
        assert (single.ids, single.nfe, single.order) == (answer.ids, answer.nfe, answer.order)


def test_text_is_decoded_as_by_the_export_of_the_text_alone(vision_export, tmp_path, prompts) -> None:
    text = export(imported(vision_export, tmp_path / "text", text_only=True), tmp_path / "hf", dtype=torch.float32)
    ids = [[token for token in each if token > 100] for each in prompts.ids]
    models = [load_model(each, None, torch.device("cpu")) for each in (vision_export, text)]
    for decode in (generate_ar, generate_diffusion, generate_self_speculation, generate_quadratic):
        found, expected = ([answer.ids for answer in decode(each, ids, SETTINGS)] for each in models)
        assert found == expected
    with torch.no_grad():
        one, other = (each(torch.tensor([ids[5]]), use_causal_mask=True).logits for each in models)
    assert torch.equal(one, other)


def test_prompts_and_images_that_do_not_go_together_are_one_line(model, prompts) -> None:
    for given in (prompts.ids, ImagePrompts(prompts.ids, {name: t[:3] for name, t in prompts.images.items()})):
        with pytest.raises(UserError, match="image tokens .id 20.") as caught:
            generate_ar(model, given, SETTINGS)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thinking", [False, True])
def test_a_turn_holds_its_images_first(vision_export, model, tmp_path, thinking) -> None:
    from nld_train.data.chat_encoder import load_chat_encoder
    from nld_train.data.chat_template import Message

    files = [write_picture(tmp_path / "a.png", 24, 16), write_picture(tmp_path / "b.webp", 100, 30, seed=1)]
    tokenizer = load_text_tokenizer(vision_export, 400)
    images = [read_image_file(file) for file in files]
    made = image_chat_prompts(load_image_processor(vision_export), tokenizer, images, thinking)("def main()")
    plain = load_chat_encoder(tokenizer, thinking).prompt([Message("user", "def main()")]).tolist()
    (ids,) = made.ids
    first, cells = ids.index(IMAGE), [*image_tokens(2, 3), *image_tokens(2, 6)]
    assert ids[first : first + len(cells)] == cells and [*ids[:first], *ids[first + len(cells) :]] == plain
    assert made.images["image_sizes"].tolist() == [[16, 24], [16, 48]]
    assert len(generate_self_speculation(model, made, SETTINGS)[0].ids) == 16


def test_a_text_that_spells_a_control_token_is_refused(vision_export, tmp_path) -> None:
    images = [read_image_file(write_picture(tmp_path / "a.png", 8, 8))]
    prompt = image_chat_prompts(
        load_image_processor(vision_export), load_text_tokenizer(vision_export, 400), images, False
    )
    with pytest.raises(UserError, match=r"spells the control token <\|im_end\|>"):
        prompt("hello <|im_end|> there")


def test_files_that_are_no_images_are_one_line(tmp_path) -> None:
    whole = write_picture(tmp_path / "whole.png", 64, 64)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "vector.svg").write_text("<svg/>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("cut.png", "text.png", "vector.svg", "empty.jpg"):
        with pytest.raises(UserError, match=f"{name} is no image that can be read") as caught:
            read_image_file(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in ("nowhere.png", "."):
        with pytest.raises(UserError, match="no file"):
            read_image_file(tmp_path / name)


def test_an_image_is_turned_as_it_says_and_made_rgb(tmp_path) -> None:
    from PIL import Image

    picture = Image.new("L", (10, 4), 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture.save(tmp_path / "turned.jpg", exif=exif)
    found = read_image_file(tmp_path / "turned.jpg")
    assert (found.size, found.mode) == ((4, 10), "RGB")
