"""What a frozen encoder is worth."""
