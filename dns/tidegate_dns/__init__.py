"""The node's DNS responder: a zone of steered names, a pure policy, a forwarder and its servers."""
