"""Captioned images: reading and encoding captions, their vocabulary, and samples with both."""
