# SPDX-License-Identifier: Apache-2.0
"""Administration of stored documents: list, verify, repair and delete (`longmem memory`)."""
