"""HTTP/1.1 on intercepted connections: framing, the fast path, and the journal of what is being handled."""
