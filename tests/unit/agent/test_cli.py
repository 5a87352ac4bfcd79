"""The command line as people and scripts meet it: real processes, exit codes, and what is printed where."""

import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidegate_agent import __version__

STATUS = {
    "version": "9.9.9",
    "pid": 4242,
    "supervisor_pid": 4241,
    "uptime_s": 3723.0,
    "hosts": ["registry-1.docker.io", "ghcr.io"],
    "steering": {
        "active": False,
        "backend": "nft",
        "reason": "the probe failed",
        "paused": False,
        "paused_until": None,
        "lease_s": 3.0,
        "addresses": 7,
    },
    "dns": {
        "resolvers": ["192.0.2.53"],
        "mode": "learn",
        "queries": 12,
        "forwarded": 5,
        "learned": 7,
        "resolver_reachable": False,
    },
    "cache": {
        "hits": 31,
        "misses": 2,
        "stale": 1,
        "bytes": 3 * 2**30,
        "blobs": 17,
        "max_bytes": 2**35,
        "saved_bytes": 1536,
    },
    "upstreams": [{"kind": "direct", "url": "", "healthy": False, "reason": "no route"}],
    "trust": [{"runtime": "dockerd", "pid": 77, "trusts": False, "action": "systemctl restart docker"}],
    "clients_spliced": [{"exe": "/usr/bin/crio", "pid": 78, "reason": "other mount", "until": "it restarts"}],
}


def tidegate(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command line in a process of its own, with nothing of ours in its environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    code = "import sys; from tidegate_agent.cli import main; sys.argv[0] = 'tidegate'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=inherited | {"PYTHONPATH": ":".join(sys.path), "COLUMNS": "200"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class _Answer(http.server.BaseHTTPRequestHandler):
    code, body = 200, b""

    def do_GET(self) -> None:
        self.send_response(self.code if self.path == "/v1/status" else 404)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """A test's output is no place for an access log."""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[[int, bytes], None]]:
    """An agent's socket in `tmp_path`; called, it says what GET /v1/status answers."""
    handler = type("Answer", (_Answer,), {})

    def answers(code: int, body: bytes) -> None:
        handler.code, handler.body = code, body  # type: ignore[attr-defined]

    with socketserver.UnixStreamServer(str(tmp_path / "agent.sock"), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield answers
        server.shutdown()
        thread.join()


def test_the_version_is_the_package_s_own() -> None:
    """DESIGN 9."""
    done = tidegate("--version")

    assert (done.returncode, done.stdout) == (0, f"tidegate {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [["--nope"], ["nope"], ["config", "check"], ["agent", "--set", "steering.lease"], ["trust", "nope"]],
)
def test_wrong_usage_is_exit_code_2_and_a_message_on_standard_error(arguments: list[str]) -> None:
    """DESIGN 9: exit codes."""
    done = tidegate(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_good_configuration_is_checked_with_exit_code_0(tmp_path: Path) -> None:
    """DESIGN 9: config check."""
    file = tmp_path / "agent.toml"
    file.write_text('[cache]\nmax_size = "1GiB"\n')

    done = tidegate("config", "check", str(file))

    assert (done.returncode, done.stderr) == (0, "")
    assert f"{file}: ok" in done.stdout


@pytest.mark.parametrize(
    "command", [["config", "check"], ["agent", "--dry-run", "--config"], ["agent", "--config"]]
)
@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[cach]\n", ["unknown key `cach`", "did you mean `cache`?"]),
        (
            '[[tags]]\nmatch = "x"\nfresh_for = "1m"\nregistry = "docker.oi"',
            ["tags[0].registry", "did you mean 'docker.io'?"],
        ),
    ],
)
def test_a_bad_configuration_is_exit_code_2_cause_and_next_step(
    tmp_path: Path, command: list[str], toml: str, told: list[str]
) -> None:
    """DESIGN 9: every error names the cause and the next thing to type; the agent does not start."""
    file = tmp_path / "agent.toml"
    file.write_text(toml)

    done = tidegate(*command, str(file))

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tidegate: {file}: ")
    assert all(part in done.stderr for part in told)
    assert "Traceback" not in done.stderr


def test_the_configuration_in_effect_is_shown_with_its_sources_laid_over_each_other(tmp_path: Path) -> None:
    """DESIGN 8: the command line wins over the environment, the environment over the file."""
    file = tmp_path / "agent.toml"
    file.write_text('state_dir = "/file"\n[cache]\nmax_size = "1GiB"\nmin_free = "1GiB"\n')
    environment = {"TIDEGATE_CACHE__MAX_SIZE": "2GiB", "TIDEGATE_CACHE__MIN_FREE": "2GiB"}

    done = tidegate("config", "show", "--config", str(file), "--set", "cache.min_free=3GiB", **environment)

    assert done.returncode == 0
    assert 'state_dir = "/file"' in done.stdout
    assert 'max_size = "2GiB"' in done.stdout
    assert 'min_free = "3GiB"' in done.stdout


def test_a_misspelt_variable_or_key_is_exit_code_2() -> None:
    """DESIGN 8: nothing of ours is silently ignored."""
    by_variable = tidegate("config", "show", TIDEGATE_CACHE_MAX_SIZE="1GiB")
    by_option = tidegate("config", "show", "--set", "cache.max_siz=1GiB")

    assert (by_variable.returncode, by_option.returncode) == (2, 2)
    assert "did you mean TIDEGATE_CACHE__MAX_SIZE?" in by_variable.stderr
    assert "did you mean `cache.max_size`?" in by_option.stderr


def test_the_steered_hosts_are_listed_one_a_line() -> None:
    """DESIGN 8: what scripts ask for."""
    done = tidegate("config", "hosts", "--config", "/dev/null")

    assert done.stdout.splitlines()[:2] == ["registry-1.docker.io", "index.docker.io"]


def test_status_without_an_agent_is_exit_code_1_and_says_what_to_type(tmp_path: Path) -> None:
    """DESIGN 9."""
    done = tidegate("status", TIDEGATE_RUNTIME_DIR=str(tmp_path))

    assert (done.returncode, done.stdout) == (1, "")
    assert f"no agent is running: nothing listens on {tmp_path}/agent.sock" in done.stderr
    assert "tidegate agent" in done.stderr


def test_status_as_json_is_what_the_agent_said(tmp_path: Path, agent: Callable[[int, bytes], None]) -> None:
    """DESIGN 9: stable and documented."""
    agent(200, json.dumps(STATUS).encode())

    done = tidegate("status", "--json", TIDEGATE_RUNTIME_DIR=str(tmp_path))

    assert done.returncode == 0
    assert json.loads(done.stdout) == STATUS


def test_status_for_people_shows_every_part_and_what_is_off(
    tmp_path: Path, agent: Callable[[int, bytes], None]
) -> None:
    """DESIGN 9: steering and its reason, resolvers, cache, and what to type."""
    agent(200, json.dumps(STATUS).encode())

    shown = tidegate("status", TIDEGATE_RUNTIME_DIR=str(tmp_path)).stdout

    for part in (
        "pid 4242, up 1:02:03",
        "off: the probe failed (nft)",
        "registry-1.docker.io, ghcr.io",
        "192.0.2.53 (learn): not answering",
        "12 queries, 5 forwarded, 7 addresses learned",
        "31 hits, 2 misses, 1 stale",
        "17 blobs, 3.0 GiB of 32.0 GiB",
        "1.5 KiB",
        "direct: no route",
        "dockerd: systemctl restart docker",
        "/usr/bin/crio (pid 78): other mount, until it restarts",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("code", "body"), [(500, json.dumps(STATUS).encode()), (200, b"{}"), (200, b"garbage")]
)
def test_an_agent_that_answers_badly_is_an_error_without_a_traceback(
    tmp_path: Path, agent: Callable[[int, bytes], None], code: int, body: bytes
) -> None:
    """DESIGN 9."""
    agent(code, body)

    done = tidegate("status", TIDEGATE_RUNTIME_DIR=str(tmp_path))

    assert done.returncode == 1
    assert done.stderr.startswith("tidegate: the agent")
    assert "Traceback" not in done.stderr


def test_asking_for_the_status_loads_no_data_plane() -> None:
    """DESIGN 7: a small command is a fast one, and the supervisor of `tidegate agent` stays small."""
    code = (
        "import sys, tidegate_agent.cli, tidegate_agent.config, tidegate_agent.admin_request;"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    for heavy in ("aiohttp", "uvloop", "pyroute2", "cryptography", "rich", "asyncio", "structlog", "dnslib"):
        assert f"'{heavy}'" not in done.stdout
