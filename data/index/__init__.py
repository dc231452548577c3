"""The index of shards: where each sample lies, made once, and read when it is needed."""
