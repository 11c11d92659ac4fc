"""Reference ranges: the numbers of models that work, and where those of another model lie among them."""
