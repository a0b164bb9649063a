"""What ties count in each direction of retrieval between text and video, by name."""

from __future__ import annotations

from common.evaluation.retrieval import TIES

TEXT_TO_VIDEO, VIDEO_TO_TEXT = "text to video", "video to text"

_BY_DIRECTION = {"frozen": {TEXT_TO_VIDEO: "optimistic", VIDEO_TO_TEXT: "averaged"}}
RULES = {
    **TIES,
    "frozen": "as Frozen in Time's published code, optimistic for text to video, averaged for "
    "video to text",
}


def of(name: str, direction: str) -> str:
    """Returns the key of `retrieval.TIES` that a key of `RULES` stands for in a direction."""
    return _BY_DIRECTION[name][direction] if name in _BY_DIRECTION else name
