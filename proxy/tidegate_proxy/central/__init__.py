"""The central tier: the cache behind a containerd mirror and a CONNECT proxy, without steering."""
