"""A port for a server that a test starts."""

import socket


def free_port() -> int:
    """One of this machine's that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
