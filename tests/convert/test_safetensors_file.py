"""Our reading and writing of safetensors against the library's."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nld_train.convert.safetensors_file import SafetensorsFile, write_safetensors
from nld_train.convert.weight_table import HFTensor
from nld_train.errors import UserError

PARTS = [HFTensor("a", (4, 3)), HFTensor("b", (5,)), HFTensor("c", (2, 1))]


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {part.name: torch.randn(part.shape).to(dtype) for part in PARTS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_reads_what_we_write(tmp_path, dtype) -> None:
    made = tensors(dtype)
    pieces = [made["a"][:1], made["a"][1:], made["b"], made["c"]]
    write_safetensors(tmp_path / "x", PARTS, dtype, iter(pieces))
    found = load_file(tmp_path / "x")
    assert found.keys() == made.keys()
    assert all(torch.equal(found[name], made[name]) for name in made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_we_read_what_the_library_writes(tmp_path, dtype) -> None:
    made = tensors(dtype)
    save_file(made, tmp_path / "x", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x")
    assert file.entries.keys() == made.keys()
    for name, tensor in made.items():
        assert torch.equal(file.read(name), tensor)
        assert torch.equal(file.read(name, 1, 3), tensor[1:3])
        assert torch.equal(file.read(name, 1), tensor[1:])


def test_too_few_numbers_are_a_mistake_of_ours(tmp_path) -> None:
    with pytest.raises(AssertionError, match="bytes for a header of"):
        write_safetensors(tmp_path / "x", PARTS, torch.float32, [torch.zeros(4, 3)])


@pytest.mark.parametrize("kept", [4, 20, -1])
def test_a_truncated_file_is_one_line(tmp_path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors(torch.float32), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="model.safetensors .*; allowed: a whole safetensors file; do: copy") as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)


def test_other_dtypes_and_missing_files_are_refused(tmp_path) -> None:
    save_file({"x": torch.zeros(2, dtype=torch.int8)}, tmp_path / "x")
    with pytest.raises(UserError, match="x has the dtype I8; allowed: BF16, F32, F16, F8_E4M3"):
        SafetensorsFile(tmp_path / "x")
    with pytest.raises(UserError, match="no y in"):
        SafetensorsFile(tmp_path / "y")


def test_a_range_that_does_not_fit_its_shape_is_refused(tmp_path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"gives x 8 bytes for the shape \[3\]"):
        SafetensorsFile(tmp_path / "x")


def with_header(path, change) -> None:
    """Write the file again with its header changed."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


HEADERS = {
    "entry is none": lambda header: header.update(a=None),
    "no dtype": lambda header: header["a"].pop("dtype"),
    "dtype a list": lambda header: header["a"].update(dtype=[]),
    "shape a text": lambda header: header["a"].update(shape="4,3"),
    "shape below zero": lambda header: header["a"].update(shape=[-4, -3]),
    "shape a bool": lambda header: header["b"].update(shape=[True, 5]),
    "one offset": lambda header: header["a"].update(data_offsets=[0]),
    "offsets of another size": lambda header: header["a"].update(data_offsets=[0, 47]),
    "offsets below zero": lambda header: header["a"].update(data_offsets=[-48, 0]),
    "an unknown key": lambda header: header["a"].update(more=1),
    "tensors over each other": lambda header: header["c"].update(data_offsets=header["b"]["data_offsets"], shape=[5]),
    "a gap": lambda header: header.pop("b") and header,
    "a huge shape": lambda header: header["a"].update(shape=[2**62, 2**62]),
    "metadata a number": lambda header: header.update(__metadata__=3),
    "metadata of numbers": lambda header: header.update(__metadata__={"a": 3}),
    "a list": lambda header: [header],
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_wrong_anywhere_is_one_line(tmp_path, change) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors(torch.float32), path)
    with_header(path, change)
    with pytest.raises(UserError, match=r"model\.safetensors") as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)
