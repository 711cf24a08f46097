"""`longmem plan`: predict time, memory and disk of a job."""
