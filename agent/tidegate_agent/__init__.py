"""The node daemon and the command line: configuration, wiring, steering back ends, trust stores, admin."""

__version__ = "0.1.0"
