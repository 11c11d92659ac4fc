"""Lineage of models: who descends from whom, by what their blocks compute and not by how that is stored."""
