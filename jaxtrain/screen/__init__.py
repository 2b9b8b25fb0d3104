"""What a person sees on the terminal: plan, progress and result."""
