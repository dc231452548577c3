"""What `scripts/describe.py` is made of."""
