"""Frozen patch features and the classes of their pixels: read, and judged."""
