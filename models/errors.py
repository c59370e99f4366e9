"""Errors of networks."""


class NetworkError(ValueError):
    """Unknown network, option or value, or images that the network cannot take."""


class OptionError(NetworkError, TypeError):
    """A network has no such option, or an option no such value.

    A TypeError too, which is what Python raises for an unknown argument.
    """
