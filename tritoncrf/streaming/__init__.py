"""Images through a budget of memory."""
