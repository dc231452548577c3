"""Other projects' objectives over our encoder, in our training loop: what we are compared with."""
