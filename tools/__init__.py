"""Programs that make or measure things for the project; none is part of the package."""
