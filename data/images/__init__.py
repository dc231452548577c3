"""Bytes -> pixels: decoding, cropping, resizing, augmenting."""
