"""What a GPU gives, in one command."""
