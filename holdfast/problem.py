"""The one exception a user meets: what is wrong, with which thing, and what to do about it."""


class Problem(Exception):
    """Bad input or a full disk, told in one message. The command line prints it and exits with code 2.

    Write the message as *thing: what is wrong; remedy*. Anything that is not a `Problem` is a bug.
    """
