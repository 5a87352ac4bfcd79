"""Client by fault: what real clients make of an origin that fails, directly and through the agent."""
