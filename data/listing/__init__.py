"""Shards that a configuration's key names: patterns, folders, splits."""
