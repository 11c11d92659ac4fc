"""Callbacks for transformers' and Lightning's trainers."""
