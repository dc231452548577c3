"""What a key names as shards."""
