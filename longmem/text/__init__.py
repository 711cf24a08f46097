"""Input texts: finding, reading and naming documents, and cutting them into segments."""
