"""`tidegate central`: configuration, wiring and state of the central tier."""
