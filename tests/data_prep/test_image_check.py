"""Images that are taken, and what is said of those that are not."""

import base64
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from data_prep import image_check
from data_prep.image_check import CheckedImage, ImageChecker, ImageRules
from nld_train.data.chat_template import ChatProblem
from nld_train.data.image_tokens import ImageSizes
from nld_train.errors import UserError
from tests.data_prep.image_files import draw_image, encode_image, save_image


def check(data: bytes, **rules: object) -> CheckedImage:
    return ImageChecker(ImageRules(**rules)).load_image(data, Path("in.jsonl"))[1]


def refused(data: bytes | str, beside: Path = Path("in.jsonl"), **rules: object) -> str:
    with pytest.raises(ChatProblem) as problem:
        ImageChecker(ImageRules(**rules)).load_image(data, beside)
    assert "\n" not in str(problem.value)
    return str(problem.value)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT"


def test_cells_are_counted_by_the_size() -> None:
    found = check(encode_image(draw_image(448, 308)))
    assert (found.rows, found.columns, found.suffix, found.notes) == (11, 16, ".png", ())
    small = check(encode_image(draw_image(448, 308)), sizes=ImageSizes(14, 2, 280))
    assert (small.rows, small.columns) == (7, 10)


@pytest.mark.parametrize(("form", "suffix"), [("JPEG", ".jpg"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("TIFF", ".tif")])
def test_the_suffix_is_that_of_the_bytes(form: str, suffix: str) -> None:
    assert check(encode_image(draw_image(40, 40), form)).suffix == suffix


MODES = {
    "RGBA": [image_check.CLEAR],
    "LA": [image_check.CLEAR, image_check.OTHER],
    "P": [image_check.PALETTE],
    "L": [image_check.OTHER],
    "1": [image_check.OTHER],
}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_converted_is_named(mode: str) -> None:
    assert list(check(encode_image(draw_image(40, 40, mode=mode))).notes) == MODES[mode]


def test_printing_colours_and_sixteen_bits_are_named() -> None:
    assert check(encode_image(draw_image(40, 40, mode="CMYK"), "TIFF")).notes == (image_check.CMYK,)
    assert check(encode_image(Image.new("I;16", (40, 40)))).notes == (image_check.DEEP,)


def test_of_several_frames_the_first_is_taken() -> None:
    frames = [draw_image(40, 40, seed, "P") for seed in range(3)]
    data = encode_image(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert image_check.FRAMES in check(data).notes
    assert image_check.FRAMES not in check(encode_image(frames[0], "GIF")).notes


def test_an_image_that_exif_turns_is_counted_with_its_sides_exchanged() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = check(encode_image(draw_image(448, 308), "JPEG", exif=exif))
    assert (found.rows, found.columns, found.notes) == (16, 11, (image_check.TURNED,))


def test_the_header_decides_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    large, decoded = encode_image(Image.new("1", (1001, 1000))), []
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image))
    assert "more than 64 megapixels: 9000x9000" in refused(png_header(9000, 9000))
    assert "more than 64 megapixels" in refused(png_header(60000, 60000))  # Pillow itself refuses this one
    assert "more than 1 megapixels" in refused(large, megapixels=1)
    assert not decoded


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_cut_image_is_broken(form: str) -> None:
    data = encode_image(draw_image(200, 200), form)
    assert refused(data[: len(data) // 2]).startswith("a broken image: ")


@pytest.mark.parametrize("data", [b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>"])
def test_what_is_no_image_is_broken(data: bytes) -> None:
    assert refused(data).startswith("a broken image: none of JPEG, PNG")


def test_an_extreme_shape_has_no_cells() -> None:
    assert refused(encode_image(Image.new("L", (4000, 1)))) == (
        "an image whose short side would be less than a pixel: 4000x1 at a longest edge of 1540"
    )


def test_data_urls_are_bytes() -> None:
    data = encode_image(draw_image(40, 40))
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    assert ImageChecker(ImageRules()).load_image(url, Path("in.jsonl"))[0] == data
    assert refused(url[:-3]).startswith("an image that is no base64")
    assert refused("data:image/png,abc").startswith("a data URL without base64")


@pytest.mark.parametrize("url", ["http://a.b/c.png", "https://a.b/c.png", "file:///etc/passwd", "s3://b/c.png"])
def test_nothing_is_downloaded(url: str) -> None:
    assert refused(url) == f"an image behind a URL, and nothing is downloaded: {url}"


def test_paths_belong_to_the_folder_of_the_file_and_never_leave_it(tmp_path: Path) -> None:
    data = save_image(tmp_path / "set" / "images" / "a.png", 40, 40)
    save_image(tmp_path / "out.png", 40, 40)
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "out.png")
    beside = tmp_path / "set" / "in.jsonl"
    assert ImageChecker(ImageRules()).load_image("images/a.png", beside)[0] == data
    for name in ("../out.png", "images/../../out.png", str(tmp_path / "out.png"), "link.png"):
        assert refused(name, beside) == f"an image outside of its folder, which --image-folder may name: {name}"
    assert refused(str(tmp_path / "set" / "images" / "a.png"), beside).startswith("an image outside")
    assert refused("images/b.png", beside) == "no image file: images/b.png"
    assert refused("images", beside) == "no image file: images"
    assert refused("a\0b", beside).startswith("an image file that cannot be read")


def test_a_folder_that_is_named_holds_relative_and_whole_paths(tmp_path: Path) -> None:
    data = save_image(tmp_path / "pictures" / "a.png", 40, 40)
    save_image(tmp_path / "b.png", 40, 40)
    checker = ImageChecker(ImageRules(folder=str(tmp_path / "pictures")))
    for name in ("a.png", str(tmp_path / "pictures" / "a.png")):
        assert checker.load_image(name, tmp_path / "else" / "in.jsonl")[0] == data
    assert refused("../b.png", tmp_path / "in.jsonl", folder=str(tmp_path / "pictures")).startswith("an image outside")


def test_each_image_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checker, data = ImageChecker(ImageRules()), encode_image(draw_image(40, 40))
    first = checker.load_image(data, Path("in.jsonl"))
    monkeypatch.setattr(image_check, "check_image", None)
    assert checker.load_image(bytes(data), Path("in.jsonl")) == first


@pytest.mark.parametrize("rules", [{"megapixels": 0}, {"megapixels": 90}, {"folder": "nowhere"}])
def test_rules_out_of_range_are_refused(rules: dict) -> None:
    with pytest.raises(UserError):
        ImageRules(**rules)


def test_sizes_that_no_run_can_have_are_refused() -> None:
    with pytest.raises(UserError, match="longest_edge"):
        ImageSizes(longest_edge=1500)
