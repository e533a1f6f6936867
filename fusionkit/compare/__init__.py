"""Systems side by side: what each costs and what each learns."""
