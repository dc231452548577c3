"""The parts of export.py: the source, the formats, the model card, the push."""
