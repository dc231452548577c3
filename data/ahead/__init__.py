"""What fetches remote shards before they are needed."""
