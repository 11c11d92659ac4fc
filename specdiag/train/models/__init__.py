"""Models that training builds, by transformers or here."""
