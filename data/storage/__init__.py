"""Files that are read by range, on this machine or behind a URL."""
