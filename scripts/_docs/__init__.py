"""Parts of the documentation's build: pages made of code, records and configurations."""
