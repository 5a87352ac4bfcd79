"""Where a miss is asked for, and in whose name."""
