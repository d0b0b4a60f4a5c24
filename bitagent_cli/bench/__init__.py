"""`bitagent bench`: measures speed on this machine; one module per subject, each prints JSON."""
