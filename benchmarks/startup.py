"""The agent at rest: how soon it steers after exec, what it and its supervisor hold, what they use idle.

Run it with `.venv/bin/python benchmarks/startup.py [--rounds N]`, as root. There is no peer: the targets are
absolute, so a busy machine shows in the first and the last figure.
"""

from __future__ import annotations

import argparse
import time

from comparison import Report, Row, at_most
from peer import Agent, Lab, Node, cpu_seconds, require, until

IDLE_S = 10
STEERS = '"event": "steering"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    require()
    ready: list[float] = []
    agent_rss: list[float] = []
    supervisor_rss: list[float] = []
    shared_once: list[float] = []
    idle: list[float] = []
    with Lab() as lab:
        node = lab.node
        node.install_trust()
        for number in range(rounds):
            began = time.monotonic()
            agent = node.start_agent()
            wait_for_steering(agent)
            ready.append(time.monotonic() - began)
            pids = [agent.pid, agent.supervisor_pid]
            before, since = cpu_seconds(node, pids), time.monotonic()
            time.sleep(IDLE_S)
            idle.append(100 * (cpu_seconds(node, pids) - before) / (time.monotonic() - since))
            agent_rss.append(held_mib(node, pids[0], "Rss"))
            supervisor_rss.append(held_mib(node, pids[1], "Rss"))
            shared_once.append(sum(held_mib(node, pid, "Pss") for pid in pids))
            agent.stop()
            print(
                f"round {number + 1} of {rounds}: steers after {ready[-1]:.2f} s,"
                f" {agent_rss[-1]:.0f} + {supervisor_rss[-1]:.0f} MiB, {idle[-1]:.2f} % of a core",
                flush=True,
            )
    report = Report(benchmark="startup", rounds=rounds)
    report.add(Row(what="exec to steering", unit="s", tidegate=ready, target=at_most(1.0)))
    report.add(Row(what="RSS of the agent", unit="MiB", tidegate=agent_rss, target=at_most(80)))
    report.add(Row(what="RSS of the supervisor", unit="MiB", tidegate=supervisor_rss))
    report.add(Row(what="both, shared pages counted once", unit="MiB", tidegate=shared_once))
    report.add(Row(what="idle CPU of both", unit="% of a core", tidegate=idle, target=at_most(0.5)))
    report.finish()


def wait_for_steering(agent: Agent) -> None:
    """Until its log says so: asking it would cost it time."""

    def steers() -> bool:
        if not agent.supervisor.running:
            raise SystemExit(f"the agent ended:\n{agent.log}")
        return STEERS in agent.log

    until(steers, "the agent steers", within_s=60, every_s=0.002)


def held_mib(node: Node, pid: int, kind: str) -> float:
    rollup = node.path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition(f"\n{kind}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
