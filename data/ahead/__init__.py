"""Fetching remote shards before they are needed."""
