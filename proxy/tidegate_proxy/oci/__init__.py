"""The vocabulary of the OCI distribution specification and of HTTP's content negotiation, as values; pure."""
