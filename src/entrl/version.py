"""The version of entrl, where every room can read it without the public face above them."""

__version__ = "0.1.0"
