"""The matrices of what a block computes, whatever the form in which its weights are stored."""
