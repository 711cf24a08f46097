"""Ray around longmem, and nothing else: pools, store actors, joining a cluster. No tensor arithmetic lives here."""
