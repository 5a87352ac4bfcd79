"""Verified blobs on disk by digest, and the index of what is known about them."""
