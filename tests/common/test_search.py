"""A search says when no word of a text is known, and takes no index of other weights."""

import types

import numpy as np
import pytest
import tiny_brave
from tool_flags import tool_flags

from common import search
from common.errors import UserError
from common.weights import loading
from configs import frozen_base


def test_a_text_of_which_all_word_pieces_are_unknown_is_named(tmp_path, capsys, monkeypatch):
    pieces = tmp_path / "pieces.txt"
    pieces.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nball\n##s\n")
    config = frozen_base.smoke(frozen_base.get_config())
    config.model.text.pieces = str(pieces)
    model = tiny_brave.loaded(config.lock())
    dim = model.encoder("text").dim
    bundle = types.SimpleNamespace(  # nothing is embedded here, so nothing is compiled
        model=model,
        encoders=model.method.encoders,
        embed_texts=lambda texts: np.ones((len(texts), dim), np.float32),
        path="bundle",
    )
    monkeypatch.setattr("common.weights.load_bundle", lambda _: bundle)

    def write_index(model, number=1):
        np.savez(
            tmp_path / "index.npz",
            features=np.full((1, dim), number, np.float32),
            paths=np.array(["one.mp4"]),
            encoder="video_joint",
            model=model,
        )

    write_index(loading.fingerprint(model.model))
    with tool_flags(search, "--bundle=bundle", f"--index={tmp_path / 'index.npz'}"):
        search.main(["search", "a ball", "xyzzy plugh", "balls"])
        write_index("of other weights")
        with pytest.raises(UserError, match="made with other weights than those of bundle"):
            search.main(["search", "a ball"])
        write_index(loading.fingerprint(model.model), np.nan)
        with pytest.raises(UserError, match="the features of one.mp4 are no finite numbers"):
            search.main(["search", "a ball"])
    known, unknown, inner = capsys.readouterr().out.strip().split("\n\n")
    assert "no word that the text encoder knows" in unknown
    assert "knows" not in known + inner
