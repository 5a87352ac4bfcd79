"""What both daemons share: errors, settings, log, notify. Nothing else."""
