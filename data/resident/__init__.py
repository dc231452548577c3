"""Training images that are decoded once and stay on the device, which cuts the crops."""
