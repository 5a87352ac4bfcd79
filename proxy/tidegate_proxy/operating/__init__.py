"""What an operator does with the cache: list, purge, explain, warm, export, import."""
