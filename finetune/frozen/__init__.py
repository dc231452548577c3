"""What a frozen encoder is worth: its features on disk, and the measures that read them."""
