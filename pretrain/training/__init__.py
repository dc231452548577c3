"""The loop that pretraining and fine-tuning share; it knows no objective."""
