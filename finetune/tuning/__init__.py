"""What fine-tuning runs share, whatever they tune: labelled splits, loss, validation, steps."""
