"""What went wrong, said to the person who can put it right."""


class UserError(Exception):
    """A wrong input, file or setting. Its message is one line: what was wrong, where, what to do.

    The command lines print it without a traceback and exit with a non-zero code. Any other exception is a fault of ours
    and keeps its traceback.
    """
