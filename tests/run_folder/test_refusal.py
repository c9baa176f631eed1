"""OUTPUT/refused.txt: written by the ranks of one start, forgotten by the next."""

from pathlib import Path

from nld_train.run_folder.refusal import forget_refusal, read_refusal, record_refusal


def test_of_several_ranks_the_first_ones_line_stays(tmp_path: Path) -> None:
    assert read_refusal(tmp_path) is None
    record_refusal(tmp_path, "out of memory on rank 3")
    record_refusal(tmp_path, "out of memory on rank 0")
    assert read_refusal(tmp_path) == "out of memory on rank 3"
    forget_refusal(tmp_path)
    assert read_refusal(tmp_path) is None
