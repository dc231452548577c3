"""The parts of `scripts/recommend.py`: look, measure, choose, write."""
