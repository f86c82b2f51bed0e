"""How long a step takes: its operations, what each costs on a device, and both together."""
