"""Docker: a libnetwork remote driver and IPAM driver (plug-in protocol v1), in terms of the agent's local socket."""

from runtimes.docker.server import DIRECTORY, SOCKETS, serve

__all__ = ["DIRECTORY", "SOCKETS", "serve"]
