"""Two network namespaces: a tiny agent with real rules in one, servers that say who they are in the other."""
