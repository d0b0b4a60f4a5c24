"""What there is to look at in a run: scores, tables, figures, the page of all of them, a playground for prompts."""
