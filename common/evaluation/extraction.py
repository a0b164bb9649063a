"""Features of a split by an encoder or a baseline, under a protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from common import config as config_lib
from common import precision
from common.data import sources as sources_lib
from common.errors import UserError
from common.evaluation import baselines, embedding, features, random_clips, reading
from common.evaluation.protocols import SPREAD, Protocol
from common.evaluation.stretches import Stretches
from common.method import AudioInput, Encoder, VideoInput
from common.weights import loading

_log = logging.getLogger(__name__)


def open_split(split: str, name: str) -> sources_lib.Source:
    """Opens the source of ``--train`` or ``--test``; raises `UserError` naming the flag."""
    if name == sources_lib.FAKE:
        raise UserError(f"--{split}={name}: evaluation needs real videos with labels.")
    try:
        return sources_lib.open_source(name)
    except UserError as error:
        raise UserError(f"--{split}: {error}") from error


def default_rates(loaded: loading.Loaded) -> reading.DefaultRates:
    """Returns the rates that a model's configuration gives to records which do not say theirs."""
    data = loaded.config.data
    return reading.DefaultRates(data.default_frame_rate, data.default_audio_rate)


class Extraction:
    """Extracts each kind of features once and keeps it."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        loaded: loading.Loaded,
        sources: Mapping[str, sources_lib.Source],
        protocol: Protocol,
        seed: int,
        batch_size: int,
        threads: int,
        stretches: Stretches | None = None,
    ):
        """Makes the extraction.

        Args:
            root: folder of features.
            loaded: the trained model.
            sources: "train" and "test", or those of them that are asked for.
            protocol: which clips.
            seed: of random clips and of untrained weights.
            batch_size: clips per call of an encoder.
            threads: videos read at once; 0 is one per core.
            stretches: what is embedded instead of the whole records of "test".
        """
        self._root, self._loaded, self._sources = root, loaded, sources
        self._protocol, self._seed = protocol, seed
        self._batch_size, self._threads = batch_size, threads
        self._stretches = stretches
        self._rates = default_rates(loaded)

    def __call__(self, name: str, kind: str, split: str) -> features.Features:
        """Returns the features of a split.

        Args:
            name: of the encoder.
            kind: "trained", "random" (the same network, untrained), "pixels" (the raw input, made
                small) or "noise".
            split: "train" or "test".
        """
        if kind == "noise":
            seed = [self._seed, ("train", "test").index(split)]
            return baselines.noise_like(self(name, "trained", split), seed)
        encoder, model, weights = self._encoder(name, kind)
        source = self._sources[split]
        random = split == "train" and self._protocol.train_passes > 0
        cut, prepare = self._cut(encoder.inputs, random)
        modality = "audio" if isinstance(encoder.inputs, AudioInput) else "frames"
        read: features.Read = reading.SourceReader(source, modality, cut, self._rates)
        num_videos = len(source.records)
        description = {
            "source": source.name,
            "records": _fingerprint(source),
            "encoder": name,
            "inputs": dataclasses.asdict(encoder.inputs),
            "features": kind,
            "weights": weights,
            "network": _network(self._loaded.config),
            "protocol": dataclasses.asdict(self._protocol),
            "rates": dataclasses.asdict(self._rates),
            "random_clips_seed": self._seed if random else None,
        }
        if self._stretches is not None and split == "test":
            read = self._stretches.reader(source, encoder.inputs, cut, self._rates)
            num_videos = len(self._stretches)
            description["stretches"] = self._stretches.description()
        what = "videos" if "stretches" not in description else "clips"
        _log.info("%s, %s features of --%s: %d %s", name, kind, split, num_videos, what)
        embedder = embedding.Embedder(encoder, model, self._batch_size, prepare)
        return features.extract(
            self._root, description, num_videos, encoder.dim, read, embedder,
            embedder.batch_size, self._threads,
        )  # fmt: skip

    def model(self, kind: str) -> Any:
        """Returns the model whose features are "trained" or "random"."""
        return (self._untrained if kind == "random" else self._trained)[0]

    def _encoder(self, name: str, kind: str) -> tuple[Encoder, Any, str]:
        """Returns an encoder, its model, and what identifies its weights."""
        encoder = self._loaded.encoder(name)
        if kind == "pixels":
            return baselines.raw_encoder(encoder.inputs), None, "none"
        if kind == "random":
            return encoder, *self._untrained
        return encoder, *self._trained

    @functools.cached_property
    def _trained(self) -> tuple[Any, str]:
        return self._loaded.model, loading.fingerprint(self._loaded.model)

    @functools.cached_property
    def _untrained(self) -> tuple[Any, str]:
        model = loading.untrained(self._loaded.method, self._seed)
        return model, loading.fingerprint(model)

    def _cut(
        self, inputs: VideoInput | AudioInput, random: bool
    ) -> tuple[reading.Cut, embedding.Prepare | None]:
        """Returns how clips are cut on the host and changed on the device."""
        protocol, rates = self._protocol, self._rates
        if not random:
            return lambda clip, _: reading.cut(clip, inputs, protocol, rates), None
        cut = random_clips.cutter(inputs, protocol, self._seed, rates)
        # Published audio features are not augmented; clips of other rules come as they are wanted.
        augmented = isinstance(inputs, VideoInput) and protocol.rule == SPREAD
        return cut, embedding.training_augmentation(self._seed) if augmented else None


def _fingerprint(source: sources_lib.Source) -> str:
    """Returns a digest that changes when the records are written anew."""
    digest = hashlib.sha256(str(len(source.records)).encode())
    for path in source.records.paths:
        digest.update(str(path).encode())
        with contextlib.suppress(OSError):  # remote shards are known by their names alone
            facts = os.stat(path)
            digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()


def _network(config: ConfigDict) -> dict[str, Any]:
    """Returns what shapes the network beside its weights; files are known by those they gave."""
    own = {f"model.{key}": value for key, value in config_lib.flatten(config.model).items()}
    known = {key: value for key, value in own.items() if key not in config.get("files", ())}
    return known | {"compute_dtype": precision.compute_dtype(config.compute_dtype).name}
