"""Names of BraVe's views; imports nothing, since the host side needs them too."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import UserError

NARROW = "narrow"
KINDS = ("audio", "video", "flow")


def broad_views(kinds: Sequence[str]) -> dict[str, str]:
    """Names the broad views, in order, and says of which kind each is.

    The first view of a kind goes by the kind's name, further ones are numbered from two:
    ("video", "video", "audio") gives {"video": "video", "video_2": "video", "audio": "audio"}.

    Raises:
        UserError: no view at all, or one of an unknown kind.
    """
    if isinstance(kinds, str) or not kinds:
        raise UserError(
            f"config.model.broad is {kinds!r}; list at least one broad view, e.g. ('audio',). "
            f"Kinds are {', '.join(KINDS)}."
        )
    named: dict[str, str] = {}
    for index, kind in enumerate(kinds):
        if kind not in KINDS:
            raise UserError(
                f"config.model.broad[{index}] is {kind!r}; it must be one of {', '.join(KINDS)}."
            )
        count = sum(other == kind for other in kinds[: index + 1])
        named[kind if count == 1 else f"{kind}_{count}"] = kind
    return named
