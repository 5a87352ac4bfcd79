"""What the supervisor imports: it stays with every agent for as long as the machine runs."""

import subprocess
import sys

HEAVY = ("asyncio", "structlog", "cryptography", "subprocess", "pyroute2", "tidegate_agent.steering.nft")


def test_the_supervisor_imports_no_back_end_and_no_event_loop() -> None:
    """DESIGN 4: a tiny parent; the agent that it forks imports the rest."""
    program = f"import sys, tidegate_agent.main; print([name for name in {HEAVY} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert told.stdout.strip() == "[]"
