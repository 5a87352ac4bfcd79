"""Tidegate in a minute, played in the lab. Run by `tidegate demo`; see `scenes.py` for what is shown."""
