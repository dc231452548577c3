"""Streams that only go forwards: pipes and stdin."""
