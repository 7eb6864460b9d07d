"""Models in the forms that other tools load. Each module needs the extra of its name."""
