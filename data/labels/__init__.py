"""Class labels: parsing them, class names, labelled splits."""
