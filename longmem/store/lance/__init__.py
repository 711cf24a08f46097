"""The store on LanceDB: tables, commits, recovery and maintenance."""
