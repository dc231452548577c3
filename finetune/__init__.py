"""What a pretrained encoder is worth downstream."""
