"""What each verb does: one module a verb, and what several of them share. Prints nothing."""
