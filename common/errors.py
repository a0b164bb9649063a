"""Errors that are meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake the user can mend: the message names the thing, the place and the fix.

    Entry points print the message alone, without a stack trace, and exit with status 2.
    """
