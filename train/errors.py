"""What a user can put right."""


class UserError(Exception):
    """Shown without a traceback: names the thing, the place and the remedy."""
