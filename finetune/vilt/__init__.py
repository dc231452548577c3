"""What a pretrained image-text model is used for: classifiers of pairs, and retrieval."""
