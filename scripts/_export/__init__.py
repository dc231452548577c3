"""What export.py is made of: what is exported, the formats, the model card, the push."""
