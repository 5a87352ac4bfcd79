"""The text of the setup scripts; what they do is shown in tests/netns/test_central_setup.py."""

import subprocess

import pytest

from tidegate_proxy.central.pages import page
from tidegate_proxy.central.request_head import Authority, Page
from tidegate_proxy.central.setup_script import setup_script, undo_script

CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
PROXY = Authority(host="central.example.org", port=3128)


@pytest.mark.parametrize("shell", ["bash", "dash"])
@pytest.mark.parametrize("script", [setup_script(PROXY, ca_pem=CA), undo_script()])
def test_the_scripts_are_good_shell_and_do_nothing_when_half_of_them_arrived(script: str, shell: str) -> None:
    """T1: piped from the network, a script may end anywhere: only its last line starts anything."""
    half = script[: script.rindex("main ")]
    assert subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode == 0

    done = subprocess.run([shell], input=half, text=True, capture_output=True, check=True)

    assert (done.stdout, done.stderr) == ("", "")


def test_the_script_holds_the_authority_and_the_name_that_its_reader_used() -> None:
    """T1: nothing more has to be fetched, and the proxy is reached as it was reached."""
    script = setup_script(PROXY, ca_pem=CA)

    assert CA in script
    assert "proxy='http://central.example.org:3128'" in script
    assert "127.0.0.0/8" in script
    assert ".svc," in script


def test_pages_are_for_reading_and_know_their_reader() -> None:
    """T1: the index tells what to type; other paths and methods are told what there is."""

    def ask(path: str, method: str = "GET", host: Authority | None = PROXY) -> tuple[int, str]:
        reply = page(Page(method=method, path=path, host=host, via=""), ca_pem=CA.encode())
        return reply.status, reply.body.decode()

    assert ask("/ca.crt", host=None) == (200, CA)
    assert "curl -fsS http://central.example.org:3128/setup/systemd | sudo bash" in ask("/")[1]
    assert ask("/setup/systemd", host=None)[0] == 400
    assert ask("/setup/undo", host=None)[0] == 200
    assert ask("/else")[0] == 404
    assert ask("/", method="POST")[0] == 405
