"""A folder that is read holds all that is read of it: no name in its files, and no link, leads out of it."""

from collections.abc import Iterable
from pathlib import Path

from nld_train.errors import require

# Hugging Face's cache: the files of models--NAME/snapshots/HASH are links into models--NAME/blobs.
CACHED_MODEL = "models--"


def check_plain_names(index: Path, names: Iterable[object]) -> None:
    """Refuse an index that names anything but files beside it. Raises: UserError."""
    for name in names:
        plain = isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name
        require(plain, f"{index} names {name!r}", "files beside it, without a folder", "copy the folder again")


def check_folder_links(folder: Path) -> None:
    """Refuse links from a folder to files outside; of a model in Hugging Face's cache, outside of that model.

    Raises: UserError.
    """
    home = folder.resolve()
    roof = next((above for above in home.parents if above.name.startswith(CACHED_MODEL)), home)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_symlink():
            target = _link_target(path)
            require(
                target is not None and target.is_relative_to(roof),
                f"{path} is a link to {target or 'itself'}",
                f"files of {folder} itself",
                "copy the file into the folder, or name the folder that it lies in",
            )


def _link_target(path: Path) -> Path | None:
    """Where a link leads in the end; None for one that leads to itself."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return None
