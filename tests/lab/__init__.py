"""A lab of network namespaces with real registries, a real resolver and real clients. See README.md."""

from .agent import Agent
from .artifact import Artifact
from .central import Central
from .client import CLIENTS, Pull, Pulling
from .containerd import Containerd
from .dockerd import Dockerd
from .fault import Fault, Redirects
from .host import Host
from .https import HttpsAnswer, Recorded, ask, replay
from .image import LARGE, SINGLE, SMALL, Contents, Image, Recipe
from .lab import Lab
from .node import Node
from .own_registry import OwnRegistry, allow_plain_http
from .process import CommandFailed, Completed, Process
from .registry import Connection, Registry, Request, User
from .resolver import Resolver
from .tier import Carried, Tier
from .waiting import until

__all__ = [
    "CLIENTS",
    "LARGE",
    "SINGLE",
    "SMALL",
    "Agent",
    "Artifact",
    "Carried",
    "Central",
    "CommandFailed",
    "Completed",
    "Connection",
    "Containerd",
    "Contents",
    "Dockerd",
    "Fault",
    "Host",
    "HttpsAnswer",
    "Image",
    "Lab",
    "Node",
    "OwnRegistry",
    "Process",
    "Pull",
    "Pulling",
    "Recipe",
    "Recorded",
    "Redirects",
    "Registry",
    "Request",
    "Resolver",
    "Tier",
    "User",
    "allow_plain_http",
    "ask",
    "replay",
    "until",
]
