"""Bundles: folders that hold a trained model and all that is needed to use it.

    weights.safetensors   every array of the model, by path
    config.json           the configuration it was trained with
    preprocessing.json    what the encoders take, and how files become that
    versions.json         of the format and of the libraries that made it
    files/                what else the encoders need, such as a vocabulary
    README.md             the model card

A bundle is read without the trainer, without TensorFlow, and without running anything it holds.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from common import attachments, state
from common import config as config_lib
from common.data import convert, records, tables
from common.errors import UserError
from common.evaluation import reading
from common.evaluation.embedding import Embedder
from common.evaluation.features import BadClip, Example, in_order
from common.evaluation.protocols import Protocol
from common.method import DOT, AudioInput, Encoder, TextInput, VideoInput
from common.weights import loading, model_card

FORMAT = 1
_WEIGHTS, _CONFIG, _PREPROCESSING = "weights.safetensors", "config.json", "preprocessing.json"
_VERSIONS, _CARD = "versions.json", "README.md"
_NAMED = 10  # bad files named in an error
_LIBRARIES = (
    "jax",
    "flax",
    "numpy",
    "safetensors",
    "av",
    "pillow",
    "opencv-contrib-python-headless",
)


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained model that embeds files and arrays.

    Attributes:
        path: where it was loaded from.
        model: the weights, with the method and the configuration they belong to.
        protocol: which clips of a file are embedded and averaged.
        stored: how a file becomes frames and sound, as for the records it was trained on.
    """

    path: pathlib.Path
    model: loading.Loaded
    protocol: Protocol
    stored: convert.Settings

    @property
    def encoders(self) -> dict[str, Encoder]:
        """The encoders by name, with the shapes they take and return."""
        return dict(self.model.method.encoders)

    def embed_videos(
        self, paths: Sequence[str | os.PathLike[str]], encoder: str = "video"
    ) -> np.ndarray:
        """Returns one feature per video file, float32 (N, D), the mean over its clips.

        A file is decoded, sampled and cut as ingest and evaluation would; the result does not
        depend on what else is in the list.

        Args:
            paths: files.
            encoder: which of the video encoders.

        Raises:
            UserError: the bundle has no such video encoder, or files cannot be read; names them.
        """
        if not isinstance(self.model.encoder(encoder).inputs, VideoInput):
            raise UserError(f"The {encoder} encoder does not take videos.")
        return self._embed_files(encoder, paths)

    def embed_audio(self, paths: Sequence[str | os.PathLike[str]]) -> np.ndarray:
        """Returns one feature per sound or video file, float32 (N, D); see `embed_videos`."""
        return self._embed_files("audio", paths)

    def embed_texts(self, sentences: Sequence[str]) -> np.ndarray:
        """Returns one feature per sentence, float32 (N, D).

        With the features of a video encoder of the same space (see ``encoders``) their similarity,
        which the encoder names, says how well a video fits a sentence: `zero_shot.scores`.

        Raises:
            UserError: the bundle has no text encoder, or one string is given instead of a list.
        """
        if isinstance(sentences, str):
            raise UserError(f"Give a list of sentences, such as [{sentences!r}].")
        if other := [sentence for sentence in sentences if not isinstance(sentence, str)]:
            raise UserError(f"{other[0]!r} is no sentence; give a list of strings.")
        encoder = self.model.encoder("text")
        return self._embedder("text").all(encoder.inputs.tokenise(sentences))

    def embed(self, encoder: str, clips: np.ndarray) -> np.ndarray:
        """Returns one feature per clip, float32 (N, D), for arrays as the encoder takes them.

        Args:
            encoder: its name.
            clips: uint8 (N, T, S, S, 3) or int16 (N, samples); see ``encoders[name].inputs``.
                T is 1 for single pictures, where clips are whole videos.

        Raises:
            UserError: no such encoder, or clips of another shape or dtype.
        """
        clips = np.asarray(clips)
        _check_clips(encoder, self.model.encoder(encoder), clips)
        return self._embedder(encoder).all(clips)

    def _embed_files(self, name: str, paths: Sequence[str | os.PathLike[str]]) -> np.ndarray:
        if isinstance(paths, str | os.PathLike):
            raise UserError(f"Give a list of paths, such as [{str(paths)!r}].")
        features_ND, bad = self.embed_readable(paths, name)
        if bad:
            raise UserError(f"{len(bad)} of {len(paths)} files cannot be embedded:\n{named(bad)}")
        return features_ND

    def embed_readable(
        self, paths: Sequence[str | os.PathLike[str]], encoder: str
    ) -> tuple[np.ndarray, dict[str, str]]:
        """Embeds those files that can be read.

        Returns:
            One feature for each of them, float32 (N, D), in their order, and for the others why
            not, by path.

        Raises:
            UserError: the bundle has no such encoder, or it takes no files.
        """
        if isinstance(self.model.encoder(encoder).inputs, TextInput):
            raise UserError(f"The {encoder} encoder takes texts, not files.")
        files = [os.fspath(path) for path in paths]
        features, bad = [], {}
        read = functools.partial(self._read_file, files, self.model.encoder(encoder))
        for number, outcome in in_order(range(len(files)), read, threads=0):
            if isinstance(outcome, BadClip):
                bad[files[number]] = str(outcome)
            else:
                features.append(self._embedder(encoder).all(outcome.inputs).mean(axis=0))
        width = self.model.encoder(encoder).dim
        return np.array(features, np.float32).reshape(-1, width), bad

    def _read_file(self, files: Sequence[str], encoder: Encoder, number: int) -> Example:
        """Makes the record that ingest would make of a file, and cuts its clips."""
        path = files[number]
        audio = encoder.inputs.sample_rate if isinstance(encoder.inputs, AudioInput) else 0
        settings = dataclasses.replace(self.stored, audio_rate=audio)
        name = tables.printable(path)
        item = tables.Item(id=name, path=os.path.abspath(path), name=name)
        outcome = convert.convert(item, (), settings)
        if outcome.record is None:
            raise BadClip(outcome.reason)
        clip = records.deserialize(outcome.record)
        return Example(path, (), reading.cut(clip, encoder.inputs, self.protocol))

    def _embedder(self, name: str) -> Embedder:
        cache = self.__dict__.setdefault("_embedders", {})
        if name not in cache:
            clips = self.protocol.test_clips * self.protocol.test_crops
            cache[name] = Embedder(self.model.encoder(name), self.model.model, clips)
        return cache[name]


def named(bad: Mapping[str, str]) -> str:
    """Lists files and what is wrong with them, a line for each of the first."""
    lines = [f"  {path}: {why}" for path, why in bad.items()]
    more = [f"  and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "\n".join(lines[:_NAMED] + more)


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Opens a bundle.

    Raises:
        UserError: it is no bundle, of a newer format, or does not fit this version of the code.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = pathlib.Path(path)
    try:
        versions = json.loads((folder / _VERSIONS).read_text())
        if versions["format"] != FORMAT:
            raise UserError(
                f"{folder} has bundle format {versions['format']}; this version reads {FORMAT}. "
                "Install the version of zoetrope that made it, or export it again."
            )
        config = config_lib.from_json((folder / _CONFIG).read_text())
        if absent := attachments.missing(config, folder):
            raise UserError(f"{folder} is no whole bundle: {absent[0]} is missing.")
        config = attachments.found(config, folder)
        preprocessing = json.loads((folder / _PREPROCESSING).read_text())
        if not (folder / _WEIGHTS).is_file():
            raise UserError(f"{folder} is no bundle: there is no {folder / _WEIGHTS}.")
        arrays = load_file(folder / _WEIGHTS)
        protocol = Protocol(**preprocessing["protocol"])
        stored = convert.Settings(**preprocessing["stored"])
        encoders, made_from = preprocessing["encoders"], versions["made_from"]
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no bundle: there is no {error.filename}.") from None
    except (
        ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError
    ) as error:  # fmt: skip
        raise UserError(f"{folder} is no whole bundle: {error}") from error
    method = loading.create_method(config, str(folder))
    if _encoder_facts(method.encoders) != encoders:
        raise UserError(
            f"{folder}: the encoders of its configuration take or return other shapes than "
            f"{_PREPROCESSING} says; it was made by another version of the code."
        )
    model = _model(method, arrays, folder)
    origin = {"kind": "bundle", "path": str(folder), "made_from": made_from}
    return Bundle(folder, loading.Loaded(config, method, model, origin), protocol, stored)


def save_bundle(
    loaded: loading.Loaded,
    folder: str | os.PathLike[str],
    protocol: Protocol,
    stored: convert.Settings,
    results: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes a bundle; it appears whole or not at all.

    Args:
        loaded: the model.
        folder: to make; must not exist.
        protocol: which clips of a file are embedded.
        stored: how files become frames and sound.
        results: what evaluations wrote, for the model card; see `result_tables.read`.

    Raises:
        UserError: the folder exists already, or the protocol is not one for a video encoder.
    """
    from safetensors.numpy import save_file

    for encoder in loaded.method.encoders.values():
        if isinstance(encoder.inputs, VideoInput):
            protocol.check(encoder.inputs)

    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; nothing was written. Name another --output.")
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        arrays = loading.arrays(loaded.model)
        save_file(arrays, partial / _WEIGHTS)
        (partial / _CONFIG).write_text(config_lib.to_json(loaded.config))
        attachments.keep(loaded.config, partial)
        preprocessing = {
            "encoders": _encoder_facts(loaded.method.encoders),
            "protocol": dataclasses.asdict(protocol),
            "stored": dataclasses.asdict(stored),
        }
        _write_json(partial / _PREPROCESSING, preprocessing)
        versions = {"format": FORMAT, "made_from": loaded.origin, **_versions()}
        _write_json(partial / _VERSIONS, versions)
        card = model_card.render(loaded, arrays, protocol, versions, results)
        (partial / _CARD).write_text(card)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("zoetrope", *_LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # used from a source tree
            found[name] = "not installed as a package"
    return found


def _encoder_facts(encoders: Any) -> dict[str, Any]:
    """Returns what `Encoder` says, in JSON's types."""
    return {
        name: {
            **_input_facts(encoder.inputs),
            "dim": encoder.dim,
            **({"space": encoder.space} if encoder.space else {}),
            **({"similarity": encoder.similarity} if encoder.similarity != DOT else {}),
        }
        for name, encoder in encoders.items()
    }


def _input_facts(inputs: VideoInput | AudioInput | TextInput) -> dict[str, Any]:
    if isinstance(inputs, TextInput):
        return {"input": "text", "max_words": inputs.max_words}
    kind = "video" if isinstance(inputs, VideoInput) else "audio"
    # What is left at its default is not said, so that bundles from before there was a choice load.
    defaults = {field.name: field.default for field in dataclasses.fields(inputs)}
    facts = dataclasses.asdict(inputs).items()
    return {"input": kind, **{name: value for name, value in facts if value != defaults[name]}}


def _model(method: Any, arrays: dict[str, np.ndarray], folder: pathlib.Path) -> Any:
    """Returns the method's model with the arrays as its weights; all must fit."""
    graphdef, params, rest = loading.abstract(method)
    wanted = {"params": params, "state": rest}
    paths = {
        f"{part}/{path}": leaf
        for part, tree in wanted.items()
        for path, leaf in state.flatten(tree).items()
    }
    problems = [f"{path} is missing" for path in paths.keys() - arrays.keys()]
    problems += [f"{path} is not of this model" for path in arrays.keys() - paths.keys()]
    problems += [
        f"{path} has shape {arrays[path].shape}, expected {leaf.shape}"
        for path, leaf in paths.items()
        if path in arrays and arrays[path].shape != leaf.shape
    ]
    problems += [
        f"{path} is of {arrays[path].dtype}, expected {leaf.dtype}"
        for path, leaf in paths.items()
        if path in arrays and arrays[path].dtype != leaf.dtype
    ]
    if problems:
        raise UserError(
            f"{folder / _WEIGHTS} does not hold this model ({len(problems)} arrays differ, such as "
            f"{min(problems)})."
        )
    params, rest = (
        jax.tree_util.tree_map_with_path(
            lambda at, _, part=part: arrays[f"{part}/{state.path_of(at)}"], tree
        )
        for part, tree in wanted.items()
    )
    return state.merge(graphdef, params, rest)


def _check_clips(name: str, encoder: Encoder, clips: np.ndarray) -> None:
    inputs = encoder.inputs
    if isinstance(inputs, TextInput):
        shape, dtype = (inputs.max_words,), np.dtype(np.int32)
    elif isinstance(inputs, VideoInput):
        picture = inputs.segments and clips.shape[1:2] == (1,)
        shape = (1 if picture else inputs.num_frames, inputs.size, inputs.size, 3)
        dtype = np.dtype(np.uint8)
    else:
        shape, dtype = (inputs.num_samples,), np.dtype(np.int16)
    if clips.dtype != dtype or clips.shape[1:] != shape:
        raise UserError(
            f"The {name} encoder takes {dtype} arrays of shape (N, {', '.join(map(str, shape))}); "
            f"these are {clips.dtype} of shape {clips.shape}."
        )
