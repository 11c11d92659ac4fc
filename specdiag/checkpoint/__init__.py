"""From a location to lazy weight matrices: where it lies, what is stored, what each tensor is."""
