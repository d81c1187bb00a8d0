"""Opening and closing, who lives, and what is counted."""
