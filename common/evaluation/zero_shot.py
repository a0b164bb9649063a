"""Zero-shot retrieval of clips by captions and of captions by clips, with one set of weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from common.evaluation import captioned, retrieval, tie_rules
from common.evaluation.captioned import Captioned
from common.evaluation.dual_softmax import dual_softmax
from common.evaluation.embedding import Embedder
from common.evaluation.features import Features
from common.evaluation.tie_rules import TEXT_TO_VIDEO, VIDEO_TO_TEXT
from common.method import COSINE, DOT, TextInput, VideoInput

if TYPE_CHECKING:
    from common.evaluation.extraction import Extraction
    from common.weights.loading import Loaded

NAMES = {DOT: "inner product", COSINE: "cosine"}  # of similarities, in results
_DUAL = "dual softmax"
_LEAST_NORM = 1e-8  # of a feature compared by cosine: one of zeros is like nothing
_TIMES = re.compile(r"#(\d+\.\d{3})?-(\d+\.\d{3})?$")
# A YouTube id, start and end, as MSVD, VATEX and Kinetics name the files of their clips.
_YOUTUBE = re.compile(r"(?<![^/])([\w-]{11})_\d+_\d+(?=(\.\w+)?$)", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Clips and their captions in one space.

    Attributes:
        clips_MD: one row per clip that can be read.
        texts_QD: one row per caption of these.
        clip_Q: the clip of each caption.
        video_M: the video of each clip; several clips may be of one.
        facts: of the rows of results.
        similarity: how the rows are compared, `DOT` or `COSINE` of ``common.method``.
    """

    clips_MD: np.ndarray
    texts_QD: np.ndarray
    clip_Q: np.ndarray
    video_M: tuple[str, ...]
    facts: dict[str, Any]
    similarity: str = DOT


def shared_encoders(loaded: Loaded) -> tuple[str, str]:
    """Returns the names of a video and a text encoder of one space, the first there are.

    Raises:
        UserError: there are none.
    """
    encoders = loaded.method.encoders
    for text, of_text in encoders.items():
        for video, of_video in encoders.items():
            if (
                isinstance(of_text.inputs, TextInput)
                and isinstance(of_video.inputs, VideoInput)
                and of_text.space == of_video.space != ""
                and of_text.similarity == of_video.similarity
            ):
                return video, text
    raise UserError(
        f"{loaded.config.method} has no text encoder that shares a space with a video encoder (its "
        f"encoders: {', '.join(encoders)}), so its clips cannot be found by their captions. Give a "
        "model of a method of video and text, such as mil_nce."
    )


def embed(
    extract: Extraction,
    loaded: Loaded,
    encoders: tuple[str, str],
    kind: str,
    clips: Sequence[Captioned],
    batch_size: int,
) -> Embedded:
    """Embeds clips, as the mean of their parts, and their captions.

    Clips that cannot be read are left out with their captions, and named in the facts.

    Args:
        extract: gives the features of ``clips``, in their order, as "test".
        loaded: the model.
        encoders: names of the video and the text encoder.
        kind: "trained" or "random".
        clips: with their captions.
        batch_size: captions per call.

    Raises:
        UserError: no clip that can be read has a caption.
    """
    video, text = encoders
    found = extract(video, kind, "test")
    unreadable = {int(bad.id): bad.bad for bad in found.bad}  # their ids are their numbers
    readable = [clip for number, clip in enumerate(clips) if number not in unreadable]
    texts, clip_Q = captioned.pairs(readable)
    if not texts:
        raise UserError("No clip of --test that can be read has a caption.")
    encoder = loaded.encoder(text)
    ids_QW = encoder.inputs.tokenise(texts)
    facts = {
        "video_encoder": video,
        "text_encoder": text,
        "features": kind,
        "left_out": [
            {"clip": clips[number].record, "reason": why} for number, why in unreadable.items()
        ],
        "captions_without_known_words": int((~encoder.inputs.known(ids_QW)).sum()),
    }
    return Embedded(
        clips_MD=_means(found),
        texts_QD=Embedder(encoder, extract.model(kind), batch_size).all(ids_QW),
        clip_Q=clip_Q,
        video_M=tuple(video_of(clip.record) for clip in readable),
        facts=facts,
        similarity=encoder.similarity,
    )


def video_of(record: str) -> str:
    """Returns the id of a record without the times that tell clips of one video apart.

    These are those that ingest appends, and those in names such as ``mv89psg6zh4_33_46.avi``, which
    data sets give to clips of a YouTube video.
    """
    return _YOUTUBE.sub(r"\1", _TIMES.sub("", record))


def rows(embedded: Embedded, ties: str, inverse_temperature: float = 0.0) -> list[dict[str, Any]]:
    """Returns the results of both directions, then those by dual softmax.

    Intervals are over videos: captions and clips of one are drawn together. Where the rule for ties
    is not defined for a direction its ``metrics`` are empty.

    Args:
        embedded: clips and captions.
        ties: a key of `tie_rules.RULES`.
        inverse_temperature: of the dual softmax; 0 leaves it out.
    """
    clips_MD = comparable(embedded.clips_MD, embedded.similarity)
    texts_QD = comparable(embedded.texts_QD, embedded.similarity)
    clip_Q = embedded.clip_Q
    asked_A = np.unique(clip_Q)  # clips that have captions
    own_A = np.split(np.arange(len(clip_Q)), np.flatnonzero(np.diff(clip_Q)) + 1)
    directions = {
        TEXT_TO_VIDEO: (texts_QD, clips_MD, clip_Q, clip_Q),
        VIDEO_TO_TEXT: (clips_MD[asked_A], texts_QD, own_A, asked_A),
    }
    plain, dual = [], []
    for direction, (queries, candidates, right, clip_N) in directions.items():
        facts = {**embedded.facts, "direction": direction, "candidates": len(candidates)}
        groups, rule = [embedded.video_M[clip] for clip in clip_N], tie_rules.of(ties, direction)
        ranks = retrieval.ranks_from_embeddings(queries, candidates, right)
        label = NAMES[embedded.similarity]
        plain.append({**facts, "scores": label, **_outcome(ranks, rule, groups)})
        if inverse_temperature:
            scores_NM = dual_softmax(scores(queries, candidates), inverse_temperature)
            label = f"{_DUAL} at {inverse_temperature:g}"
            outcome = _outcome(retrieval.ranks(scores_NM, right), rule, groups)
            dual.append({**facts, "scores": label, **outcome})
    return plain + dual


def _outcome(ranks: retrieval.Ranks, ties: str, groups: list[str]) -> dict[str, Any]:
    if ties == "published" and (ranks.right_N > 1).any():  # which it does not know
        return {"ties": ties, "num_queries": len(ranks), "metrics": {}}
    return retrieval.outcome(ranks, ties, groups).as_dict()


def _means(found: Features) -> np.ndarray:
    """Returns the mean of the rows of each video, float32 (M, D)."""
    spans = [slice(video.start, video.start + video.count) for video in found.videos]
    return np.stack([found.rows_RD[span].mean(axis=0) for span in spans])


def is_dual_softmax(row: Mapping[str, Any]) -> bool:
    """Says whether a row of `rows` ranks by dual softmax."""
    return row["scores"].startswith(_DUAL)


def comparable(features_ND: np.ndarray, similarity: str) -> np.ndarray:
    """Returns features whose inner products are the similarity, (N, D).

    For the cosine they are divided by their norms, each no less than 1e-8 as in Frozen in Time's
    published code (github.com/m-bain/frozen-in-time), in float64.
    """
    if similarity != COSINE:
        return features_ND
    features_UD, place_N = retrieval.distinct(features_ND)
    norm_U1 = np.linalg.norm(features_UD, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # what is not finite is refused when it is ranked
        return (features_UD / np.maximum(norm_U1, _LEAST_NORM))[place_N]


def scores(queries_ND: np.ndarray, candidates_MD: np.ndarray, similarity: str = DOT) -> np.ndarray:
    """Returns similarities, float64 (N, M); those of equal rows are equal to the last bit."""
    queries_UD, query_N = retrieval.distinct(comparable(queries_ND, similarity))
    candidates_VD, candidate_M = retrieval.distinct(comparable(candidates_MD, similarity))
    return (queries_UD @ candidates_VD.T)[query_N][:, candidate_M]
