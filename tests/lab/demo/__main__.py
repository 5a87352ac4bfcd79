"""`python -m lab.demo [--set KEY=VALUE]...`: plays the demo, tells it, and leaves nothing behind.

Exit codes: 0 when every step showed what it claims, 1 when one did not, 128 and the signal's number after
Ctrl-C, SIGTERM or SIGHUP.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from rich.console import Console

from ..lab import Lab
from ..process import CommandFailed
from ..requirements import packages_missing
from . import descendants
from .narrator import Narrator
from .scenes import SCENES, Scene, Stage

PROGRAMS = (
    "unshare",
    "setpriv",
    "nft",
    "dnsmasq",
    "docker-registry",
    "skopeo",
    "podman",
    "busybox",
    "update-ca-certificates",
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What the lab raises when something of it, or in it, is not as it should be.
TROUBLE = (OSError, RuntimeError, CommandFailed)
LINES_OF_A_LOG = 15
LAB_TEST = ("sudo script/test tests/netns/test_lab.py", "says whether the lab works on this machine")


class Stopped(SystemExit):
    """Somebody wants the demo to end: not an error, so nothing on the way handles it as one.

    A SystemExit, because asyncio (in pyroute2) keeps what else is raised in one of its callbacks to itself.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


class Interruption:
    """The first signal that asked for the end, also when what it raised was lost on the way."""

    def __init__(self) -> None:
        self._number = 0

    def catch(self, number: int, frame: FrameType | None) -> None:
        _ignore_signals()
        self._number = number
        self.check()

    def check(self) -> None:
        if self._number:
            raise Stopped(self._number)


class SceneFailed(Exception):
    """A scene did not show what it claims, for these reasons."""

    def __init__(self, number: int, scene: Scene, causes: Sequence[str]):
        super().__init__(number)
        self.number = number
        self.scene = scene
        self.causes = tuple(causes)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tidegate demo", description="Plays the demo in the lab.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    settings: list[str] = parser.parse_args().settings
    narrator = Narrator(Console(highlight=False, emoji=False, markup=False))
    if complaint := _unable():
        sys.stderr.write(complaint)
        return 1
    begun = time.monotonic()
    try:
        code = _alone(narrator, settings)
    except Stopped as stopped:
        narrator.stopped(signal.Signals(stopped.number).name)
        return 128 + stopped.number
    if code == 0:
        narrator.epilogue(time.monotonic() - begun)
    return code


def _alone(narrator: Narrator, settings: Sequence[str]) -> int:
    """Perform, and end every process of it in whichever way it went."""
    interruption = Interruption()
    try:
        descendants.adopt_orphans()
        os.register_at_fork(after_in_child=_let_go)
        for number in SIGNALS:
            signal.signal(number, interruption.catch)
        code = _perform(narrator, settings, interruption)
        interruption.check()
        return code
    finally:
        _ignore_signals()
        descendants.end_all()


def _perform(narrator: Narrator, settings: Sequence[str], interruption: Interruption) -> int:
    narrator.prologue()
    begun = time.monotonic()
    try:
        with Lab(nodes=2) as lab:
            stage = Stage(lab, settings)
            narrator.ready(stage, time.monotonic() - begun)
            try:
                for number, scene in enumerate(SCENES, 1):
                    interruption.check()
                    _play(narrator, stage, number, scene)
            except SceneFailed as failed:
                _tell(narrator, stage, failed)
                return 1
    except TROUBLE as error:
        narrator.failed("The lab", str(error).splitlines(), [LAB_TEST])
        return 1
    return 0


def _play(narrator: Narrator, stage: Stage, number: int, scene: Scene) -> None:
    narrator.begins(number, scene)
    try:
        outcome = scene.play(stage)
    except TROUBLE as error:
        # What waited for the agent adds its log, which is told anyway; a command that failed adds its words.
        lines = str(error).splitlines()
        causes = lines if isinstance(error, CommandFailed) else [line.rstrip(":") for line in lines[:1]]
        raise SceneFailed(number, scene, causes or [repr(error)]) from error
    narrator.ended(scene, outcome)
    if broken := [claim for claim in outcome.claims if not claim.holds]:
        raise SceneFailed(number, scene, [f"{claim.said}; expected: {claim.expected}" for claim in broken])


def _tell(narrator: Narrator, stage: Stage, failed: SceneFailed) -> None:
    agent = stage.agent or next(iter(stage.node.agents), None)
    if agent is not None:
        narrator.log("The agent's log ends with:", agent.log.splitlines()[-LINES_OF_A_LOG:])
    detail = (f"sudo script/test {failed.scene.detail}", "examines the same claim, with every log of the lab")
    plain = [("sudo script/demo", "plays it without these settings")] if stage.settings else []
    narrator.failed(f"Step {failed.number} ({failed.scene.name})", failed.causes, [*plain, detail, LAB_TEST])


def _unable() -> str:
    """Why the demo cannot run here, and what to type; or nothing."""
    if sys.platform != "linux":
        return "tidegate: the demo needs Linux\n"
    if os.geteuid() != 0:
        return "tidegate: the demo needs root, for network and mount namespaces\n  sudo script/demo\n"
    if packages := packages_missing(PROGRAMS):
        return (
            "tidegate: the demo needs programs that are not installed\n"
            f"  apt install --no-install-recommends {' '.join(packages)}\n"
        )
    return ""


def _ignore_signals() -> None:
    """Cleaning up is not to be interrupted."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _let_go() -> None:
    """In what this process forks (pyroute2 does, to enter a namespace), signals are not ours to handle."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
