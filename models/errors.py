"""Errors of networks."""


class NetworkError(ValueError):
    """A network has no such option or value, or cannot take such images."""


class OptionError(NetworkError, TypeError):
    """A network has no such option, or an option no such value.

    A TypeError too, which is what Python raises for an unknown argument.
    """
