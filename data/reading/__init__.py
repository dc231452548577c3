"""Reading samples by their place, and checks that read them."""
