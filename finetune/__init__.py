"""A pretrained encoder downstream: fine-tuning, few-shot, probes."""
