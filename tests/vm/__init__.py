"""Virtual machines: plain qemu, set up by the cloud-init files that a fleet uses. See README.md."""
