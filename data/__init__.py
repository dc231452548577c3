"""The sample stream: shards, index, order, reading, decoding, batches."""
