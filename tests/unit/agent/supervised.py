"""An agent for the supervisor's tests, whose behaviour in each of its lives is named on the command line.

`supervised.py LEASE BEHAVIOUR...`: one behaviour a life, the last one for all that follow. Every life, every
word of the supervisor and the clean-up is a line on standard output.
"""

import os
import signal
import sys
import time

from tidegate_agent.supervisor import Heartbeat, supervise


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


class Scenario:
    """What happens in which life; counted where the agent is forked from."""

    def __init__(self, lease_s: float, behaviours: list[str]) -> None:
        self.lease_s = lease_s
        self.behaviours = behaviours
        self.supervisor = os.getpid()

    def told(self, line: str) -> None:
        tell(f"supervisor: {line}")
        self.behaviours = self.behaviours[1:] or self.behaviours

    def notified(self, line: str) -> None:
        if line != "WATCHDOG=1":
            tell(f"notify {line}")

    def cleanup(self) -> None:
        tell(f"clean-up by {'supervisor' if os.getpid() == self.supervisor else 'agent'}")

    def run(self, heartbeat: Heartbeat) -> int:
        behaviour = self.behaviours[0]
        signal.alarm(30)  # whatever a failing test leaves behind, this ends
        stopping: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: stopping.append(number))
        signal.signal(signal.SIGHUP, lambda *_: tell("reload"))
        tell(f"life {behaviour} {os.getpid()}")
        match behaviour:
            case "refuse":
                return 2
            case "raise":
                raise RuntimeError("a bug at the start")
            case "linger":
                heartbeat.ready()
                heartbeat.linger()
                while os.getppid() == self.supervisor:
                    time.sleep(0.01)
                tell("agent alone")
                return 0
            case "never-beat":
                signal.pause()
        heartbeat.beat()
        heartbeat.ready()
        match behaviour:
            case "crash":
                return 3
            case "end":
                return 0
            case "block":
                while True:
                    pass
        while not stopping or behaviour == "deaf":
            heartbeat.beat()
            time.sleep(self.lease_s / 8)
        tell(f"agent ends on {signal.Signals(stopping[0]).name}")
        return 0


if __name__ == "__main__":
    scenario = Scenario(float(sys.argv[1]), sys.argv[2:])
    sys.exit(
        supervise(
            scenario.run,
            lease_s=scenario.lease_s,
            cleanup=scenario.cleanup,
            start_s=2 * scenario.lease_s,
            stop_s=2 * scenario.lease_s,
            backoff_s=0.02,
            notify=scenario.notified,
            tell=scenario.told,
        )
    )
