"""Dense evaluation: the class of each pixel, by heads on a frozen encoder's patch features."""
