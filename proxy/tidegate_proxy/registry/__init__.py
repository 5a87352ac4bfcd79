"""What a registry request may be answered with: the store, an upstream, or the registry untouched."""
