"""Who may call, over what, and how much at once."""
