"""`longmem memory`: list, verify, repair and delete stored documents."""
