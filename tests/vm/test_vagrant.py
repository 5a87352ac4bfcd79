"""The fleet for people to look at, as a file; `script/vagrant-up` plays it for real."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from vm.cache import CHECKOUT


def test_the_vagrantfile_is_valid() -> None:
    """`vagrant validate`, with the public box and with the one made here."""
    if shutil.which("vagrant") is None:
        pytest.skip("needs the packages vagrant and vagrant-libvirt; run: script/vagrant-up --validate")
    done = subprocess.run(
        [CHECKOUT / "script/vagrant-up", "--validate"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("validated successfully") == 2
