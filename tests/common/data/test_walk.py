"""Folders are walked in order and through links; what is left out is said."""

import os

from common.data.walk import walk


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root, unread=None):
    return [
        (folder.relative_to(root) / name).as_posix()
        for folder, names in walk(root, unread)
        for name in names
    ]


def test_files_come_in_order_without_what_is_hidden_or_made_by_ingest(tmp_path):
    make(tmp_path, "b/2", "b/1", "a/x", "top", ".hidden/y", "a/.z", "out/.ingest/q", "out/sheet")
    assert found(tmp_path) == ["top", "a/x", "b/1", "b/2"]


def test_links_to_folders_are_followed_but_not_for_ever(tmp_path):
    make(tmp_path, "far/1", "root/2")
    (tmp_path / "root" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "root")
    unread = []
    assert found(tmp_path / "root", unread) == ["2", "far/1"]
    assert len(unread) == 1 and "link to a folder that it lies in" in unread[0]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    make(tmp_path, "shut/1", "open/2")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    unread = []
    assert found(tmp_path, unread) == ["open/2"]
    assert unread == [f"folder that cannot be read: {tmp_path / 'shut'} (Permission denied)"]
