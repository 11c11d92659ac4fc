"""A report as one HTML page: markup in the template, looks in the style sheet, numbers from here."""
