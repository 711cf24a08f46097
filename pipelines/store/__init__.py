"""Administration of stored documents: list, verify, repair and delete (`longmem memory`)."""
