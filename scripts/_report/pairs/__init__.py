"""What the report has of images with captions alone."""
