"""The page that comes with a bundle: what the model is, how to use it, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.evaluation import result_tables
from common.evaluation.protocols import Protocol
from common.method import TextInput, VideoInput
from common.weights import loading

_EXAMPLES = {
    "video": 'features = bundle.embed_videos(["a.mp4", "b.webm"])  # float32 (2, D)',
    "audio": 'features = bundle.embed_audio(["a.wav", "b.mp4"])  # float32 (2, D)',
    "text": 'features = bundle.embed_texts(["a dog barks"])  # float32 (1, D)',
}


def render(
    loaded: loading.Loaded,
    arrays: dict[str, np.ndarray],
    protocol: Protocol,
    versions: dict[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> str:
    """Returns the model card as Markdown.

    Args:
        loaded: the model.
        arrays: its weights by path.
        protocol: which clips of a file are embedded.
        versions: of the format and of the libraries.
        results: of evaluations; none where nothing was measured.
    """
    config, encoders = loaded.config, loaded.method.encoders
    parameters = sum(a.size for path, a in arrays.items() if path.startswith("params/"))
    libraries = (f"{k} {v}" for k, v in versions.items() if k not in ("format", "made_from"))
    lines = [
        f"# {loaded.method.title}: {' and '.join(encoders)} features",
        "",
        f"Trained with method `{config.method}`; weights from {_origin(loaded.origin)}.",
        f"{parameters / 1e6:.1f} million parameters in float32, heads of training included.",
        f"Training data as configured: `{config.data.train or 'not given'}`. Steps: "
        f"{config.steps}, batch {config.batch_size}, seed {config.seed}.",
        "",
        "## Use",
        "",
        "```python",
        "from common.weights import load_bundle",
        "",
        'bundle = load_bundle("PATH/TO/THIS/FOLDER")',
        *(_EXAMPLES[name] for name in encoders if name in _EXAMPLES),
        "```",
        "",
        f"A file is embedded as the mean over its clips: {protocol.about}.",
        "",
        "| encoder | takes | returns |",
        "|---|---|---|",
        *(f"| {name} | {_takes(e.inputs)} | float32 ({e.dim},) |" for name, e in encoders.items()),
        "",
        "## Evaluation",
        "",
        *_evaluation(results),
        "",
        "## Limits",
        "",
        "Features reflect the data they were learned from; nothing here was tested for bias or for",
        "any use in particular. The terms of the training data may bind the weights as well.",
        "",
        "## Made with",
        "",
        ", ".join(libraries),
        "",
    ]
    return "\n".join(lines)


def _origin(origin: dict[str, Any]) -> str:
    text = f"{origin['kind']} `{origin.get('path', origin.get('seed'))}`"
    if "step" in origin:
        text += f", step {origin['step']}"
    return text + (" (moving average of the parameters)" if origin.get("averaged") else "")


def _takes(inputs: Any) -> str:
    if isinstance(inputs, VideoInput) and inputs.segments:
        return (
            f"uint8 ({inputs.num_frames}, {inputs.size}, {inputs.size}, 3): one from the middle of "
            "every equal part of the video"
        )
    if isinstance(inputs, VideoInput):
        return (
            f"uint8 ({inputs.num_frames}, {inputs.size}, {inputs.size}, 3): every "
            f"{inputs.stride}. of {inputs.frame_rate:g} frames/s"
        )
    if isinstance(inputs, TextInput):
        return f"sentences, of which {inputs.max_words} known words are used"
    return f"int16 ({inputs.num_samples},): mono at {inputs.sample_rate} Hz"


def _evaluation(results: Sequence[Mapping[str, Any]]) -> list[str]:
    tables = [table for one in results for table in result_tables.tables(one)]
    if not tables:
        return ["Not evaluated when it was exported."]
    return [line for table in tables for line in ("", *table.markdown())][1:]
