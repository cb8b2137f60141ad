"""What appears is whole; what fails leaves what was there."""

from pathlib import Path

import pytest

from training.durable import appearing


def tree(folder: Path) -> dict[str, str]:
    return {str(each.relative_to(folder)): each.read_text() for each in folder.rglob("*") if each.is_file()}


def test_a_file_and_a_folder_appear_after_the_block_and_replace_what_was_there(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with appearing(tmp_path / "deep" / "file") as file, appearing(tmp_path / "folder") as folder:
            file.write_text(text)
            (folder / "inside").mkdir(parents=True)
            (folder / "inside" / text).write_text(text)
            assert text not in tree(tmp_path).get("deep/file", "")
        assert tree(tmp_path) == {"deep/file": text, f"folder/inside/{text}": text}


def test_a_block_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        with appearing(tmp_path / name) as draft:
            (draft / "half").mkdir(parents=True)
            raise KeyError

    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        with pytest.raises(KeyError):
            fail(name)
    assert tree(tmp_path) == {"old": "old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_draft_that_a_dead_process_of_our_number_left_is_no_obstacle(tmp_path: Path) -> None:
    with appearing(tmp_path / "file") as draft:
        draft.write_text("old")
        name = draft.name
    (tmp_path / name).mkdir()
    with appearing(tmp_path / "file") as draft:
        draft.write_text("new")
    assert tree(tmp_path) == {"file": "new"}
