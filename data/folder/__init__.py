"""A folder of images: what lies there, its classes, the shards it makes."""
