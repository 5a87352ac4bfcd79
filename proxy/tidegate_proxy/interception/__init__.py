"""From a redirected TCP connection to a TLS server of our own, or a splice to where it was going."""
