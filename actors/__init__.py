"""Ray around longmem: worker pools, store actors, joining a cluster. Holds no tensor arithmetic."""
