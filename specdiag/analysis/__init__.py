"""From a source to its report: what is opened, selected, measured, kept and summarised."""
