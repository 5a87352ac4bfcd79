"""Operating the cache: the JSON API on the admin socket, and the commands that use it."""
