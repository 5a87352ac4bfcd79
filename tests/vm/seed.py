"""What a machine is told at its first boot: a NoCloud seed (cloud-init, "NoCloud"), on a disk named cidata.

`user_data` is the file that a fleet uses, to the letter. What belongs to the platform is apart from it, as in
a cloud: names and addresses in meta-data and network-config, the CA of the lab's internet in vendor-data.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.network import Address, Interface

FILES = ("user-data", "meta-data", "network-config", "vendor-data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """One machine's. `settings` are the values that user-data names as `ds.meta_data.…`."""

    name: str
    mac: str
    interfaces: Sequence[Interface]
    gateways: Sequence[Interface]
    resolver: Address
    user_data: str
    settings: Mapping[str, str] = field(default_factory=dict)
    vendor: Mapping[str, Any] = field(default_factory=dict)  # Any: cloud-config
    vendor_script: str = ""

    def files(self) -> dict[str, str]:
        """File name -> content; JSON is YAML."""
        network = {
            "version": 2,
            "ethernets": {
                "uplink": {
                    "match": {"macaddress": self.mac},
                    "addresses": [str(interface) for interface in self.interfaces],
                    "routes": [
                        {"to": "0.0.0.0/0" if gateway.version == 4 else "::/0", "via": str(gateway.ip)}
                        for gateway in self.gateways
                    ],
                    "nameservers": {"addresses": [str(self.resolver)]},
                }
            },
        }
        meta = {"instance-id": f"tidegate-{self.name}", "local-hostname": self.name, **self.settings}
        vendor = [{"type": "text/cloud-config", "content": json.dumps(self.vendor)}]
        if self.vendor_script:
            vendor.append({"type": "text/x-shellscript", "content": self.vendor_script})
        return {
            "user-data": self.user_data,
            "meta-data": json.dumps(meta),
            "network-config": json.dumps(network),
            "vendor-data": "#cloud-config-archive\n" + json.dumps(vendor),
        }

    def write(self, image: Path) -> None:
        """Write the disk."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files().items():
                (Path(folder) / name).write_text(content)
            made = subprocess.run(
                ["genisoimage", "-quiet", "-volid", "cidata", "-joliet", "-rock", "-output", image, folder],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode != 0:
                raise RuntimeError(f"genisoimage: {made.stderr}")
