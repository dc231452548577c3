"""What an encoder has learnt, as numbers and as pictures."""
