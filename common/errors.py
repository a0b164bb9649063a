"""Errors that are meant for the person at the keyboard."""

import errno

# Disk or quota used up; what the user may not do with a file, or what is none.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OF_USERS = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST)
_OF_USERS += (errno.ENOTDIR, errno.EISDIR)


class UserError(Exception):
    """A mistake the user can mend: the message names the thing, the place and the fix.

    Entry points print the message alone, without a stack trace, and exit with status 2.
    """


def told(error: BaseException) -> str | None:
    """Returns what the user is told of an error that is theirs to mend, None where it is a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _OF_USERS:
        return f"{error}.{' Make room and start again.' if error.errno in _FULL else ''}"
    return None
