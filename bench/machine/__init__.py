"""The host, its devices, their health and leases, the installed software, the catalogue of cards."""
