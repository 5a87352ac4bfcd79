"""One transfer per blob, many readers: resumed when it breaks, never complete unless it is right."""
