"""Reports as files and text. Views draw what records say; they compute nothing."""
