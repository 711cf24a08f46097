"""Status of jobs and export of dashboards (`longmem status`, `longmem monitoring`)."""
