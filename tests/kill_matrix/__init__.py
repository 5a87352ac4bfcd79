"""The kill matrix: clients in the middle of something, and every end of the agent (N4, N5, N18, I1, I4)."""
