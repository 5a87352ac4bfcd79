"""Interception of registry connections, registry semantics, the store, fetches and upstreams."""
